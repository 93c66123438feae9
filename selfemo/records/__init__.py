"""A run on disk: its file names, the manifest of a checkpoint, and the reader of its records."""
