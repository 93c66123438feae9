"""Errors, files and random seeds. Every room may use them, and they import no room."""
