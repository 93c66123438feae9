"""selfemo: emotion recognition and consistent expression in conversation, learned by self-play (SELF-EMO, arXiv 2604.18003)."""

__version__ = "0.1.0"
