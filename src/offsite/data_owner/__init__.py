"""The data owner's side: tune what the emulator bundle holds on data that never leaves."""
