"""Computes intervals by a paired bootstrap over dialogues.

Two models are compared on the same turns, so each resample draws the same turns for both; turns of one
dialogue share a context and are not independent, so whole dialogues are drawn (Efron and Tibshirani
1993, ch. 8). Every figure is a function of counts per label, which add over dialogues, so a resample is
a weighting of per-dialogue counts and thousands of them are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

METRICS = ("accuracy", "weighted_f1", "macro_f1")
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    metric: str
    value: float
    """The figure on the turns themselves, without resampling."""
    low: float
    high: float
    level: float
    """Intended coverage, 0.95 for 95%."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside: for a difference, whether the models differ at this level."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class _Counts:
    """Per-dialogue counts of one model: D dialogues, L labels."""

    right_DL: Any
    predicted_DL: Any
    gold_DL: Any


def bootstrap(
    gold: Sequence[str],
    predicted: Sequence[str],
    dialogues: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[Interval, ...]:
    """Compute intervals of one model's figures, in METRICS' order; arguments as for `paired_bootstrap`."""
    counts, weights_RD = _count(gold, predicted, dialogues), _weights(dialogues, seed, resamples)
    return _intervals(
        _figures(counts, np.ones((1, weights_RD.shape[1])))[:, 0], _figures(counts, weights_RD), level
    )


def paired_bootstrap(
    gold: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    dialogues: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[Interval, ...]:
    """Compute intervals of the difference first - second of each figure, in METRICS' order.

    Args:
        gold: n primary gold labels.
        first: n predictions of one model (labels or metrics.NO_ANSWER); second: of the other.
        dialogues: n dialogue keys, one per turn: whole dialogues are resampled.
        seed: of the resampling.

    Raises:
        ValueError: no turn, or unequal lengths.
    """
    a, b, weights_RD = (
        _count(gold, first, dialogues),
        _count(gold, second, dialogues),
        _weights(dialogues, seed, resamples),
    )
    once = np.ones((1, weights_RD.shape[1]))
    return _intervals(
        (_figures(a, once) - _figures(b, once))[:, 0],
        _figures(a, weights_RD) - _figures(b, weights_RD),
        level,
    )


def seeded_bootstrap(
    gold: Sequence[str],
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]] | None,
    dialogues: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[Interval, ...]:
    """Compute intervals of a training recipe's figures averaged over its seeds, in METRICS' order.

    With a second recipe, of the difference of the two. Seeds are resampled beside dialogues, the same
    seeds and dialogues for both recipes: another training run differs from this one as another set of
    dialogues does, and an interval over dialogues alone would take one lucky seed for an effect.

    Args:
        first: predictions of every seed, each n labels. second: of the same seeds under the other
            recipe; None: no difference is taken.

    Raises:
        ValueError: no seed, unequal numbers of seeds, or any error of `paired_bootstrap`.
    """
    return _intervals(*_seeded(gold, first, second, dialogues, seed, resamples), level)


def seeded_p_values(
    gold: Sequence[str],
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    dialogues: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[float, ...]:
    """Compute the two-sided p-value of each difference of `seeded_bootstrap`, in METRICS' order.

    It is twice the share of resamples on the far side of 0, counting the sample itself (Davison and Hinkley
    1997, ch. 4), so never below 2 / (resamples + 1). Over few seeds it is too small, as the interval is too
    narrow: resampling n seeds shows (n - 1) / n of their variance.
    """
    _, samples_MR = _seeded(gold, first, second, dialogues, seed, resamples)
    far_M = np.minimum((samples_MR <= 0).sum(axis=1), (samples_MR >= 0).sum(axis=1))
    return tuple(float(min(1.0, 2 * (1 + far) / (resamples + 1))) for far in far_M)


def _seeded(
    gold: Sequence[str],
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]] | None,
    dialogues: Sequence[str],
    seed: int,
    resamples: int,
) -> tuple[Any, Any]:
    """Return each figure's mean over seeds, and in every resample: METRICS x resamples."""
    if not first or (second is not None and len(second) != len(first)):
        raise ValueError(
            f"first has {len(first)} seeds, second has {len(second or ())}: expected as many of both, > 0"
        )
    weights_RD = _weights(dialogues, seed, resamples)
    once = np.ones((1, weights_RD.shape[1]))
    value_SM, figure_SMR = [], []
    for index, predicted in enumerate(first):
        ours = _count(gold, predicted, dialogues)
        value, figure = _figures(ours, once)[:, 0], _figures(ours, weights_RD)
        if second is not None:
            theirs = _count(gold, second[index], dialogues)
            value, figure = value - _figures(theirs, once)[:, 0], figure - _figures(theirs, weights_RD)
        value_SM.append(value)
        figure_SMR.append(figure)
    count = len(first)
    share_RS = (
        np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=resamples)
        / count
    )
    return np.mean(value_SM, axis=0), np.einsum("smr,rs->mr", np.stack(figure_SMR), share_RS)


def _count(gold: Sequence[str], predicted: Sequence[str], dialogues: Sequence[str]) -> _Counts:
    if not gold or not len(gold) == len(predicted) == len(dialogues):
        raise ValueError(
            f"gold, predictions and dialogues have {len(gold)}, {len(predicted)} and "
            f"{len(dialogues)} entries, expected equal, > 0"
        )
    column = {label: i for i, label in enumerate(sorted(set(gold)))}
    row = {key: i for i, key in enumerate(dict.fromkeys(dialogues))}
    right, named, truth = (np.zeros((len(row), len(column))) for _ in range(3))
    for label, guess, dialogue in zip(gold, predicted, dialogues):
        truth[row[dialogue], column[label]] += 1
        if guess in column:
            named[row[dialogue], column[guess]] += 1
        if guess == label:
            right[row[dialogue], column[label]] += 1
    return _Counts(right, named, truth)


def _weights(dialogues: Sequence[str], seed: int, resamples: int) -> Any:
    """Count each dialogue in each resample: resamples x dialogues."""
    count = len(set(dialogues))
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def _figures(counts: _Counts, weights_RD: Any) -> Any:
    """Compute the figures of every resample: METRICS x resamples.

    A label that a resample lost is left out of its macro average, as in scikit-learn's.
    """
    right_RL, named_RL, gold_RL = (
        weights_RD @ part for part in (counts.right_DL, counts.predicted_DL, counts.gold_DL)
    )
    f1_RL = np.divide(
        2 * right_RL,
        named_RL + gold_RL,
        out=np.zeros_like(right_RL, dtype=float),
        where=named_RL + gold_RL > 0,
    )
    present_RL, n_R = gold_RL > 0, gold_RL.sum(axis=1)
    macro = (f1_RL * present_RL).sum(axis=1) / present_RL.sum(axis=1)
    return np.stack([right_RL.sum(axis=1) / n_R, (f1_RL * gold_RL).sum(axis=1) / n_R, macro])


def _intervals(values_M: Any, samples_MR: Any, level: float) -> tuple[Interval, ...]:
    lows, highs = np.quantile(samples_MR, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return tuple(
        Interval(name, float(values_M[i]), float(lows[i]), float(highs[i]), level)
        for i, name in enumerate(METRICS)
    )


def mean_interval(
    metric: str,
    values: Sequence[float],
    dialogues: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Compute the percentile interval of the mean of `values`, n figures of n turns.

    For a paired difference, the values are first - second per turn.

    Args:
        dialogues: n dialogue keys, one per turn: whole dialogues are resampled.

    Raises:
        ValueError: no value, or unequal lengths.
    """
    if not values or len(values) != len(dialogues):
        raise ValueError(
            f"values has {len(values)} entries and dialogues {len(dialogues)}, expected equal and not empty"
        )
    row = {key: i for i, key in enumerate(dict.fromkeys(dialogues))}
    places = [row[key] for key in dialogues]
    sums_D = np.bincount(places, weights=list(values), minlength=len(row))
    turns_D = np.bincount(places, minlength=len(row))
    drawn_RD = np.random.default_rng(seed).multinomial(
        len(row), np.full(len(row), 1 / len(row)), size=resamples
    )
    means_R = (drawn_RD @ sums_D) / (drawn_RD @ turns_D)
    low, high = (float(np.quantile(means_R, share)) for share in ((1 - level) / 2, (1 + level) / 2))
    return Interval(metric, sum(values) / len(values), low, high, level)
