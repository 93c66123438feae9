"""Finished models outside training: find one on disk, load it into an engine, generate with it."""
