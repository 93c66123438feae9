"""State what published corpora look like, so that a copy which looks otherwise is noticed.

Counted in the files that docs/corpora.md names; tests/corpora/test_public_counts.py counts them again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSplit:
    """Counts of one split of a published corpus."""

    dialogues: int
    label_counts: tuple[int, ...]
    """Turns by primary label, in alphabetical order of the labels."""

    @property
    def turns(self) -> int:
        """Number of turns; each has a label."""
        return sum(self.label_counts)


PUBLISHED = {
    "meld": {
        "train": PublishedSplit(1038, (1109, 271, 268, 1743, 4710, 683, 1205)),
        "dev": PublishedSplit(114, (153, 22, 40, 163, 470, 111, 150)),
        "test": PublishedSplit(280, (345, 68, 50, 402, 1256, 208, 281)),
    },
    "emorynlp": {
        "train": PublishedSplit(713, (2184, 1076, 3034, 900, 784, 671, 1285)),
        "dev": PublishedSplit(99, (289, 143, 393, 132, 134, 75, 178)),
        "test": PublishedSplit(85, (282, 113, 349, 159, 145, 98, 182)),
    },
}
"""Splits by name, by corpus."""

CHARACTERS = (
    ("an apostrophe", r"'", 0.41, 0.45),
    ("a capital letter", r"[A-Z]", 0.998, 1.0),
    ("a blank before a mark or 's", r"\w (?:[.,!?](?=\s|$)|n't\b|'(?:s|t|re|ve|ll|d|m|\s))", 0.0, 0.02),
    ("a mark at the end", r"[.!?\"'\u2014)-]\s*$", 0.94, 1.0),
)
"""(what, pattern, least share, largest share) of turns in every split of MELD and EmoryNLP."""
CHARACTERS_TOLERANCE = 0.1
"""How far a share may lie outside: that of a tenth of a split's turns."""
