"""Packages from the index."""
