"""Numbers: their shape, measures and statistics."""
