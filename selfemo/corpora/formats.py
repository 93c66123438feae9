"""Define the value that a corpus reader offers to the registry.

Discovery finds every module in `selfemo.corpora.readers` that holds a tuple named FORMATS, so that
adding a corpus takes one file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.problems import ProblemSink


@dataclass(frozen=True)
class CorpusFormat:
    """Name of a corpus, and the functions that find and read it."""

    name: str
    """Value of corpus.name that selects this format."""
    read: Callable[[Path, ProblemSink], Corpus]
    """Read the corpus at a path. If the sink returns, faulty rows are left out."""
    recognises: Callable[[Path], bool]
    """Return True if a path looks like this corpus, by the names of its files alone."""
    default_path: Callable[[Path | None], Path | None]
    """Return its usual place, given the data root (None if there is none); None if it has no usual place."""
    what: str
    """Description of the files its path must hold, for messages."""
    read_unlabelled: Callable[[Path, ProblemSink], list[Conversation]] | None = None
    """Read training dialogues alone, without labels, so that no label set is needed. None: `read` serves."""
