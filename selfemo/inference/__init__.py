"""A finished model outside training: found on disk, loaded into an engine, asked."""
