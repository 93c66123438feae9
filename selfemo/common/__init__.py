"""Errors, files and random seeds, for every room; it knows none of them."""
