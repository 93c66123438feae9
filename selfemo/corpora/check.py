"""Validate a whole corpus: every fault at once, the figures to compare with its paper, and the
texts its splits share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfemo.corpora.oddities import corpus_oddities, too_many
from selfemo.corpora.overlap import Overlap, measure_overlap, texts_of
from selfemo.corpora.problems import Problem
from selfemo.corpora.registry import AUTO, locate_corpus
from selfemo.corpora.stats import SplitStats, corpus_stats

MAX_PROBLEMS = 10_000
"""Number of faults at which reading stops: a file of another kind has one on every line."""

MAX_SHARED_SHARE = 0.05
"""Share of dev's or test's long texts that may occur in train; EmoryNLP's dev has 0.023."""


class _TooManyProblems(Exception):
    """Raised by the sink to stop a reader."""


@dataclass(frozen=True)
class CorpusCheck:
    """Results of reading a corpus to its end."""

    name: str
    path: Path
    labels: tuple[str, ...]
    splits: tuple[SplitStats, ...]
    """Figures of the rows without a fault."""
    shared_with_train: tuple[tuple[str, Overlap], ...]
    """(split, its long texts that also occur in train), for dev and test."""
    problems: tuple[Problem, ...] = field(repr=False)
    """Every fault, in the order of reading, then the rows that look wrong, if they are too many. If there
    are more than MAX_PROBLEMS faults, the last one says so and there are no figures."""
    oddities: tuple[str, ...] = field(repr=False, default=())
    """What looks wrong and makes no corpus unfit: a few rows, or the corpus as a whole."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        values = dataclasses.asdict(self)
        values["path"] = str(self.path)
        values["problems"] = [str(problem) for problem in self.problems]
        values["shared_with_train"] = {
            split: dataclasses.asdict(overlap) for split, overlap in self.shared_with_train
        }
        for split in values["splits"]:
            split["label_counts"] = dict(split["label_counts"])
        return values


def check_corpus(corpus: str, name: str = AUTO) -> CorpusCheck:
    """Read a corpus to its end and report its faults and figures.

    Args:
        corpus: a corpus's name (its usual place is read) or the path of its directory or file.
        name: the format, if a path does not show it.

    Raises:
        UserError: there is nothing to read at all; faults inside files become `problems`.
    """
    problems: list[Problem] = []
    odd: list[Problem] = []
    fmt, path = locate_corpus(corpus, name)

    def collect(problem: Problem) -> None:
        if problem.odd:
            odd.append(problem)
            return
        if len(problems) == MAX_PROBLEMS:
            raise _TooManyProblems
        problems.append(problem)

    try:
        loaded = fmt.read(path, collect)
    except _TooManyProblems:
        problems.append(
            Problem(
                path,
                0,
                f"has more problems than these {MAX_PROBLEMS}: is it a corpus of the format {fmt.name}?",
            )
        )
        return CorpusCheck(fmt.name, path, (), (), (), tuple(problems))
    train_texts = texts_of(loaded.split("train"))
    shared = tuple(
        (split, measure_overlap(texts_of(loaded.split(split)), train_texts))
        for split in ("dev", "test")
        if loaded.split(split)
    )
    unfit = too_many(odd, sum(len(c.turns) for c in loaded.conversations))
    few = set(odd) - set(unfit)
    leaks = [
        f"{split}: {overlap.shared:,} of {overlap.long_texts:,} long texts also occur in train: "
        "a score on it is partly memory"
        for split, overlap in shared
        if overlap.shared > MAX_SHARED_SHARE * overlap.long_texts
    ]
    return CorpusCheck(
        fmt.name,
        path,
        loaded.labels,
        corpus_stats(loaded),
        shared,
        (*problems, *unfit),
        (*(str(problem) for problem in odd if problem in few), *corpus_oddities(loaded), *leaks),
    )
