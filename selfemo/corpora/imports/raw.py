"""Define what an import format yields: dialogues as their source has them, labels in its own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfemo.corpora.problems import ProblemSink


@dataclass(frozen=True)
class RawTurn:
    """One utterance; values are checked later, so they may be of any type."""

    speaker: object
    text: object
    labels: tuple[object, ...] = ()
    """Labels as the source spells them, primary first."""
    votes: Mapping[str, int] = field(default_factory=dict)
    """Annotators by label, as the source spells it."""


@dataclass(frozen=True)
class RawDialogue:
    """A dialogue and where it stands."""

    split: str
    dialogue_id: str
    path: Path
    line: int
    turns: tuple[RawTurn, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of the source, kept under "meta"."""


Files = Sequence[tuple[str, Path]]
"""(split, file) of everything that is read."""


@dataclass(frozen=True)
class ImportFormat:
    """Name of a format, and the functions that find and read its files."""

    name: str
    """Word on the command line."""
    origin: str
    """Where it is published, and under which licence."""
    what: str
    """Files that a source must hold, for messages."""
    find: Callable[[Path], Files]
    """List the files of a source; empty if it holds none."""
    read: Callable[[Files, ProblemSink], Iterator[RawDialogue]]
    """Read them. If the sink returns, faulty rows are left out."""
    labels: Mapping[str, str | None]
    """Label of the project by label of the source; None leaves a turn unlabelled. Empty: none are read."""


_SPLIT_WORDS = {"valid": "dev", "validation": "dev", "val": "dev", "dev": "dev", "test": "test"}


def split_of(path: Path) -> str:
    """Return the split that a file's name tells (val, valid and validation are dev); train if it has none."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "train")


def find_files(source: Path, pattern: str) -> Files:
    """List a source's files of a name pattern by split, or the source itself if it is a file.

    Hidden files are none of them: archives packed on a Mac hold a ._train.csv beside train.csv.
    """
    if source.is_file():
        return [(split_of(source), source)]
    found = sorted(source.glob(pattern)) if source.is_dir() else []
    return [(split_of(path), path) for path in found if path.is_file() and not path.name.startswith(".")]
