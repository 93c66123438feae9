"""Train models to recognise emotions in conversation and answer with consistent ones, by self-play.

The method is SELF-EMO (arXiv 2604.18003).
"""

__version__ = "0.1.0"
