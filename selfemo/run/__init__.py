"""The life of one run: where it stands, checkpoints, resuming, guards, and what it writes down."""
