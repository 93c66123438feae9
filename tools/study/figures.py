"""Draws a study's figures from its tables: its variants side by side, and the gain over labelled share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfemo.common.files import new_file
from tools.study.render import (
    METRIC_TITLES,
    baselines_of,
    curve_variants,
    main_share,
    of_part,
    seeds_of,
    shares_of,
)
from tools.study.tables import EVERY, Comparison, Split, Tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2563a8", "#c2571a", "#4b7f52", "#7a4fa3", "#8c6d1f", "#b03060", "#5f6b73")
SIDE_BY_SIDE = (
    ("accuracy", -0.22, COLOURS[2]),
    ("weighted_f1", 0.0, COLOURS[0]),
    ("macro_f1", 0.22, COLOURS[1]),
)


def plot_variants(tables: Tables, split: Split, path: Path) -> None:
    """Draw every variant's figures with intervals, and its difference from the first baseline.

    The labelled share is that of the main comparison. The suffix of `path` decides the format.
    """
    share, baseline = main_share(tables), baselines_of(tables)[0]
    names = [arm.variant for arm in tables.arms if arm.variant != EVERY]
    own = of_part(tables.comparisons, split.split, share, "")
    against = of_part(tables.comparisons, split.split, share, baseline)
    figure = _new_figure(11, 1.4 + 0.42 * len(names))
    axes = figure.subplots(1, 2)
    labelled = "" if share is None else f", {100 * share:.3g}% of the labels"
    figure.suptitle(
        f"{split.corpus} {split.split}{labelled}, {len(seeds_of(tables, share))} seeds, "
        "95% intervals over seeds and dialogues"
    )
    for metric, offset, colour in SIDE_BY_SIDE:
        for axis, rows in zip(axes, (own, against), strict=True):
            shown = {row.variant: row for row in rows if row.measure == metric}
            _draw(axis, names, shown, offset, colour, METRIC_TITLES[metric])
    axes[0].set_xlabel("percent")
    axes[1].set_xlabel(f"difference to {baseline}, percentage points")
    axes[1].axvline(0.0, color="0.5", linewidth=1)
    axes[1].set_yticklabels([])
    axes[0].legend(loc="best")
    _save(figure, path)


def plot_curve(tables: Tables, split: Split, path: Path) -> None:
    """Draw the gain over the first baseline at every labelled share, with bands of 95%.

    One panel is accuracy, the other weighted F1.
    """
    baseline, shares = baselines_of(tables)[0], sorted(share or 1.0 for share in shares_of(tables))
    names = [name for name in curve_variants(tables) if name != baseline]
    figure = _new_figure(10, 4)
    axes = figure.subplots(1, 2)
    figure.suptitle(f"{split.corpus} {split.split}: gain over {baseline}, 95% over seeds and dialogues")
    for axis, metric in zip(axes, ("accuracy", "weighted_f1"), strict=True):
        for name, colour in zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False):
            rows = [
                row
                for share in shares
                for row in of_part(tables.comparisons, split.split, share, baseline)
                if (row.variant, row.measure) == (name, metric)
            ]
            percent = [100 * (row.share or 1.0) for row in rows]
            axis.plot(percent, [100 * row.value for row in rows], "o-", color=colour, label=name)
            lows, highs = [100 * row.low for row in rows], [100 * row.high for row in rows]
            axis.fill_between(percent, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(0.0, color="0.5", linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks([100 * share for share in shares], [f"{100 * share:.3g}" for share in shares])
        axis.minorticks_off()
        axis.set_xlabel("labelled dialogues, percent")
        axis.set_ylabel(f"{METRIC_TITLES[metric]}, percentage points")
    axes[0].legend(loc="best", fontsize="small")
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120)  # its suffix decides the format


def _draw(
    axes: Any, names: Sequence[str], rows: Mapping[str, Comparison], offset: float, colour: str, label: str
) -> None:
    places = [i for i, name in enumerate(names) if name in rows]
    shown = [rows[names[i]] for i in places]
    values = [100 * row.value for row in shown]
    errors = [[100 * (r.value - r.low) for r in shown], [100 * (r.high - r.value) for r in shown]]
    axes.errorbar(
        values,
        [place + offset for place in places],
        xerr=errors,
        fmt="o",
        color=colour,
        capsize=3,
        label=label,
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
