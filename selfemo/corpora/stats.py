"""Compute figures of a corpus per split: labels, lengths and how one emotion follows another; plot
them in one picture."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from selfemo.common.files import new_file
from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.words import pieces

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Majority:
    """Scores on a split of always answering the training split's most frequent label."""

    label: str
    accuracy: float
    weighted_f1: float
    macro_f1: float
    """Mean over the whole label set; a label that a split lacks counts as 0."""


@dataclass(frozen=True)
class SplitStats:
    """Figures of one split."""

    split: str
    dialogues: int
    turns: int
    label_counts: tuple[tuple[str, int], ...]
    """(label, turns with that primary label) of every label of the set, in its order."""
    multi_label_turns: int
    voted_turns: int
    words_median: float
    """Words of a turn, separated by blanks or as UAX 29 separates them (`pieces`)."""
    words_p95: float
    turns_median: float
    """Turns of a dialogue."""
    turns_max: int
    majority: Majority

    @property
    def labelled_turns(self) -> int:
        """Number of turns with at least one label."""
        return sum(count for _, count in self.label_counts)


def corpus_stats(corpus: Corpus) -> tuple[SplitStats, ...]:
    """Compute the figures of every split that has dialogues, train first."""
    train_counts = primary_counts(corpus.split("train"), corpus.labels)
    splits = [(name, corpus.split(name)) for name in SPLITS]
    return tuple(
        _split_stats(name, conversations, corpus.labels, train_counts)
        for name, conversations in splits
        if conversations
    )


def primary_counts(conversations: Sequence[Conversation], labels: Sequence[str]) -> dict[str, int]:
    """Count turns by primary label, in the order of `labels`."""
    counts = Counter(turn.labels[0] for c in conversations for turn in c.turns if turn.labels)
    return {label: counts[label] for label in labels}


def majority_baseline(label: str, counts: dict[str, int]) -> Majority:
    """Compute the scores of always answering `label`, in closed form.

    Its precision is its share p and its recall 1, so its F1 is 2p / (1 + p); every other label's F1
    is 0.
    """
    total = sum(counts.values())
    share = counts[label] / total if total else 0.0
    f1 = 2 * share / (1 + share)
    return Majority(label, share, share * f1, f1 / len(counts))


def transition_shares(conversations: Sequence[Conversation], labels: Sequence[str]) -> list[list[float]]:
    """Estimate P(primary label of the next turn | that of this one), rows and columns in the order
    of `labels`.

    The row of a label that never occurs is all zeros.
    """
    counts = Counter(
        (before.labels[0], after.labels[0])
        for conversation in conversations
        for before, after in pairwise(conversation.turns)
        if before.labels and after.labels
    )
    totals = {row: sum(counts[row, column] for column in labels) for row in labels}
    return [[counts[row, column] / (totals[row] or 1) for column in labels] for row in labels]


def write_plot(corpus: Corpus, path: Path) -> None:
    """Write a PNG, SVG or PDF (by suffix) of label shares per split, turn lengths and the training
    split's transitions.

    Raises:
        ValueError: the suffix names no format.
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no process-wide state

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    shares, lengths, transitions = figure.subplots(1, 3)
    figure.suptitle(f"{corpus.name}: {len(corpus.conversations):,} dialogues")
    _draw_shares(shares, corpus)
    _draw_lengths(lengths, corpus)
    _draw_transitions(transitions, corpus)
    with new_file(path, "--plot") as temporary:
        figure.savefig(temporary, dpi=120)  # the suffix decides the format


def _split_stats(
    split: str, conversations: Sequence[Conversation], labels: Sequence[str], train_counts: dict[str, int]
) -> SplitStats:
    turns = [turn for conversation in conversations for turn in conversation.turns]
    counts = primary_counts(conversations, labels)
    words = sorted(len(pieces(turn.text)) for turn in turns)
    lengths = [len(conversation.turns) for conversation in conversations]
    reference = train_counts if any(train_counts.values()) else counts
    return SplitStats(
        split=split,
        dialogues=len(conversations),
        turns=len(turns),
        label_counts=tuple(counts.items()),
        multi_label_turns=sum(len(turn.labels) > 1 for turn in turns),
        voted_turns=sum(bool(turn.votes) for turn in turns),
        words_median=statistics.median(words),
        words_p95=words[min(len(words) - 1, int(0.95 * len(words)))],
        turns_median=statistics.median(lengths),
        turns_max=max(lengths),
        majority=majority_baseline(max(labels, key=lambda label: reference[label]), counts),
    )


def _draw_shares(axes: Any, corpus: Corpus) -> None:
    splits = [name for name in SPLITS if corpus.split(name)]
    width = 0.8 / max(1, len(splits))
    for offset, split in enumerate(splits):
        counts = primary_counts(corpus.split(split), corpus.labels)
        total = sum(counts.values()) or 1
        positions = [i + (offset - (len(splits) - 1) / 2) * width for i in range(len(corpus.labels))]
        axes.bar(positions, [counts[label] / total for label in corpus.labels], width, label=split)
    axes.set_xticks(range(len(corpus.labels)), corpus.labels, rotation=40, ha="right")
    axes.set_ylabel("share of labelled turns")
    axes.set_title("Primary label")
    axes.legend()


def _draw_lengths(axes: Any, corpus: Corpus) -> None:
    for split in SPLITS:
        words = [
            min(40, len(pieces(turn.text)))
            for conversation in corpus.split(split)
            for turn in conversation.turns
        ]
        if words:
            axes.hist(words, bins=range(1, 42), density=True, histtype="step", label=split)
    axes.set_xlabel("words in a turn (40: 40 or more)")
    axes.set_ylabel("share of turns")
    axes.set_title("Length")
    axes.legend()


def _draw_transitions(axes: Any, corpus: Corpus) -> None:
    matrix = transition_shares(corpus.split("train"), corpus.labels)
    axes.imshow(matrix, cmap="Blues", vmin=0)
    axes.set_xticks(range(len(corpus.labels)), corpus.labels, rotation=40, ha="right")
    axes.set_yticks(range(len(corpus.labels)), corpus.labels)
    peak = max((value for row in matrix for value in row), default=0.0)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 0.6 * peak else "black",
                fontsize=8,
            )
    axes.set_xlabel("next turn")
    axes.set_ylabel("this turn")
    axes.set_title("Transitions in train, % of a row")
