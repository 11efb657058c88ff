"""Rows, examples, tasks."""
