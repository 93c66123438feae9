"""Hold one file per model family; each defines FAMILY (see selfemo.models.family)."""
