"""Read dialogues with emotion labels (MELD, EmoryNLP, IEMOCAP and the project's JSONL) into one
Conversation type.

Start at `selfemo.corpora.registry.load_corpus`. Nothing here needs torch.
"""
