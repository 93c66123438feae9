"""A run on disk: its file names, the manifest of a checkpoint, and reading what a run wrote."""
