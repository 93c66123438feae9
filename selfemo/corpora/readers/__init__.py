"""Read one corpus format per module; selfemo.corpora.registry finds each by its tuple FORMATS."""
