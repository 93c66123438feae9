"""Intervals of a mean over turns (smoothed IoU, exact match), for one model or for the difference of two.

As in evaluation.bootstrap, whole dialogues are resampled; a mean needs only each dialogue's sum and number of turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfemo.evaluation.bootstrap import RESAMPLES, Interval


def mean_interval(
    metric: str, values: Sequence[float], dialogues: Sequence[str], seed: int, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of `values`, n figures of n turns; for a paired difference, of first - second per turn.

    Args:
        dialogues: n dialogue keys: what is resampled.

    Raises:
        ValueError: no value, or unequal lengths.
    """
    if not values or len(values) != len(dialogues):
        raise ValueError(f"values has {len(values)} entries and dialogues {len(dialogues)}, expected equal and not empty")
    row = {key: i for i, key in enumerate(dict.fromkeys(dialogues))}
    places = [row[key] for key in dialogues]
    sums_D = np.bincount(places, weights=list(values), minlength=len(row))
    turns_D = np.bincount(places, minlength=len(row))
    drawn_RD = np.random.default_rng(seed).multinomial(len(row), np.full(len(row), 1 / len(row)), size=resamples)
    means_R = (drawn_RD @ sums_D) / (drawn_RD @ turns_D)
    low, high = (float(np.quantile(means_R, share)) for share in ((1 - level) / 2, (1 + level) / 2))
    return Interval(metric, sum(values) / len(values), low, high, level)
