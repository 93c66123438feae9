"""Define a run's settings, read them from a file, lay out the ranks, and check it all together."""
