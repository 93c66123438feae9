"""The life of one run: progress, checkpoints, resuming, guards, and the records it writes."""
