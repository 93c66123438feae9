"""Read other corpora's published files into raw dialogues; `selfemo.corpora.importing` writes them as JSONL.

Every module that holds a tuple of ImportFormat named FORMATS is found by its file alone.
"""
