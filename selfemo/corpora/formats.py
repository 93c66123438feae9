"""What a corpus reader offers to the registry.

A module in `selfemo.corpora.readers` that holds a tuple named FORMATS is found by discovery: adding a corpus is one file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.problems import ProblemSink


@dataclass(frozen=True)
class CorpusFormat:
    """One corpus name and how to read it."""

    name: str
    """What a configuration writes in corpus.name."""
    read: Callable[[Path, ProblemSink], Corpus]
    """Reads the corpus at a path; with a sink that returns, faulty rows are left out."""
    recognises: Callable[[Path], bool]
    """Whether a path looks like this corpus, by the names of its files alone."""
    default_path: Callable[[Path | None], Path | None]
    """Its usual place given the data root (None where there is none); None where it has no usual place."""
    what: str
    """What its path must hold, for messages."""
    read_unlabelled: Callable[[Path, ProblemSink], list[Conversation]] | None = None
    """Reads training dialogues alone, without labels, so that no label set is needed; None: `read` does."""
