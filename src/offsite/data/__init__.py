"""Rows, examples, tasks."""

DEFAULT_TEXT = "mixture"
"""The public text that is read where nobody says another; here, where importing it costs nothing."""
