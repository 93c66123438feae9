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
    neutral_of,
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

    Crosses are shares of neutral, the dotted line is that of the gold labels. The labelled share is that of
    the main comparison. The suffix of `path` decides the format.
    """
    share, baseline = main_share(tables), baselines_of(tables)[0]
    names = [arm.variant for arm in tables.arms if arm.variant != EVERY]
    own = of_part(tables.comparisons, split.split, share, "")
    against = of_part(tables.comparisons, split.split, share, baseline)
    figure = _new_figure(11, 1.7 + 0.42 * len(names))
    axes = figure.subplots(1, 2)
    labelled = "" if share is None else f", {100 * share:.3g}% of the labels"
    seeds = ", ".join(map(str, seeds_of(tables, share)))
    figure.suptitle(f"{split.corpus} {split.split}{labelled}, seeds {seeds}: 95% intervals")
    for metric, offset, colour in SIDE_BY_SIDE:
        for axis, rows in zip(axes, (own, against), strict=True):
            shown = {row.variant: row for row in rows if row.measure == metric}
            _draw(axis, names, shown, offset, colour, METRIC_TITLES[metric])
    neutral = neutral_of(tables, split, share)
    places = [i for i, name in enumerate(names) if name in neutral]
    axes[0].plot(
        [100 * neutral[names[i]] for i in places], places, "x", color="0.4", label="share of neutral"
    )
    axes[0].axvline(100 * split.neutral, color="0.4", linewidth=1, linestyle=":")
    axes[0].set_xlabel("percent")
    axes[1].set_xlabel(f"difference to {baseline}, percentage points")
    axes[1].axvline(0.0, color="0.5", linewidth=1)
    axes[1].set_yticklabels([])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(figure, path)


def plot_curve(tables: Tables, split: Split, path: Path) -> None:
    """Draw the gain over the first baseline at every labelled share, with bands of 95%.

    The panels are accuracy, weighted F1 and, without bands, the share of neutral beside that of the gold
    labels, a dotted line.
    """
    baseline, shares = baselines_of(tables)[0], sorted(filter(None, shares_of(tables)))
    names = [name for name in curve_variants(tables) if name != baseline]
    colours = dict(zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False))
    figure = _new_figure(14, 4)
    *gains, beside = figure.subplots(1, 3)
    figure.suptitle(f"{split.corpus} {split.split}: gain over {baseline}, bands of 95%")
    rows = [row for share in shares for row in of_part(tables.comparisons, split.split, share, baseline)]
    for axis, metric in zip(gains, ("accuracy", "weighted_f1"), strict=True):
        for name, colour in colours.items():
            shown = [row for row in rows if (row.variant, row.measure) == (name, metric)]
            axis.plot(shares, [100 * row.value for row in shown], "o-", color=colour, label=name)
            lows, highs = [100 * row.low for row in shown], [100 * row.high for row in shown]
            axis.fill_between(shares, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(0.0, color="0.5", linewidth=1)
        axis.set_ylabel(f"{METRIC_TITLES[metric]}, percentage points")
    for name, colour in (colours | {baseline: "0.5"}).items():
        neutral = [100 * neutral_of(tables, split, share)[name] for share in shares]
        beside.plot(shares, neutral, "o-", color=colour, label=name)
    beside.axhline(100 * split.neutral, color="0.4", linewidth=1, linestyle=":")
    beside.set_ylabel("share of neutral, percent")
    for axis in (*gains, beside):
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{100 * share:.3g}" for share in shares])
        axis.minorticks_off()
        axis.set_xlabel("labelled dialogues, percent")
    beside.legend(loc="best", fontsize="small")
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
