"""Decides on groups that passed the rule, by what was kept before: near duplicates and a label's share.

Both depend on the order, so one rank decides for all. It sees candidates alone: a role, a label and the words
of a text, which the rank that has the text takes from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from selfemo.config.schema import FlywheelConfig
from selfemo.flywheel.duplicates import NearDuplicates
from selfemo.flywheel.rule import DropReason, within_cap
from selfemo.selfplay.records import ROLES, Role

Candidate = tuple[Role, str, bytes]
"""A group that passed the rule, as far as this decision looks at it: its role, the primary label of its
record, and the words of its text (`Admission.word_set`). A plain tuple, since a class takes three times as
long to unpickle."""


class Admission:
    """Knows every kept text and the counts of labels."""

    def __init__(
        self, config: FlywheelConfig, shares: Mapping[str, float], known_texts: Iterable[str]
    ) -> None:
        """Begin with nothing kept.

        Args:
            shares: label shares of the training split.
            known_texts: the training texts, which fix which words are rare.
        """
        self._config, self._shares = config, shares
        known = list(known_texts)
        self._duplicates: dict[str, NearDuplicates] = {
            role: NearDuplicates(config.near_duplicate, known) for role in ROLES
        }
        self._passed: Counter[str] = Counter()
        self._kept: Counter[tuple[str, str]] = Counter()

    def word_set(self, role: Role, text: str) -> bytes:
        """Return the words of a text, as candidates hold them."""
        return self._duplicates[role].word_set(text)

    @property
    def kept(self) -> int:
        """Number of candidates kept so far."""
        return self._kept.total()

    @property
    def role_counts(self) -> dict[str, dict[str, int]]:
        """Per role: groups that passed the rule (some of them over a label's cap), and groups kept."""
        return {
            role: {
                "passed": self._passed[role],
                "kept": sum(n for (of, _), n in self._kept.items() if of == role),
            }
            for role in ROLES
        }

    def decide(self, candidates: Sequence[Candidate]) -> list[DropReason | None]:
        """Decide on candidates in their order; None keeps one."""
        return [self._decide(candidate) for candidate in candidates]

    def recall(self, role: str, label: str, kept: bool, count: int) -> None:
        """Count candidates of an earlier part of the run."""
        self._passed[role] += count
        if kept:
            self._kept[role, label] += count

    def recall_text(self, role: str, text: str) -> None:
        """Remember a text that an earlier part of the run kept."""
        self._duplicates[role].add(text)

    def _decide(self, candidate: Candidate) -> DropReason | None:
        role, label, words = candidate
        if self._duplicates[role].holds_words(words):
            return "near duplicate"
        fits = within_cap(
            label, self._kept[role, label], self._passed[role], self._shares, self._config.rare_label_share
        )
        self._passed[role] += 1
        if not fits:
            return "label cap"
        self._kept[role, label] += 1
        self._duplicates[role].add_words(words)
        return None
