"""Dialogues with emotion labels: MELD, EmoryNLP, IEMOCAP and the project's JSONL, read into one Conversation type.

`selfemo.corpora.registry.load_corpus` is the way in. Nothing here needs torch.
"""
