"""Renders a study's tables as Markdown. Figures are in percent, intervals of 95%."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from selfemo.evaluation.intervals import METRICS
from tools.study.tables import EVERY, MINUTES, SEPARATOR, TRAINING, Comparison, Split, Tables, Value

METRIC_TITLES = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}
FURTHER_COLUMNS = {
    "siou": ("sIoU", "{:.3f}"),
    "neutral_share": ("share of neutral", "{:.1%}"),
    "label_entropy": ("label entropy, nats", "{:.2f}"),
    "calibration": ("calibration error", "{:.3f}"),
    "agreement": ("agreement of views", "{:.3f}"),
    "expression": ("expression sIoU", "{:.3f}"),
}
Share = float | None


def render(tables: Tables) -> str:
    """Return the page's tables: arms, then for every split and labelled share figures and differences."""
    parts = [*_arms(tables), ""]
    for split in tables.splits:
        if split.evaluated:
            parts += [_told(split), ""]
        for share in shares_of(tables):
            parts += _part(tables, split, share)
        if curve_variants(tables) and len(shares_of(tables)) > 1:
            parts += [f"![gain over labelled share, {split.split}]({split.split}-curve.png)", ""]
        parts += [f"![{split.split}]({split.split}.png)", ""]
    return "\n".join([*parts, *_cost(tables)])


def shares_of(tables: Tables) -> list[Share]:
    """List the labelled shares in the study's order."""
    return list(dict.fromkeys(row.share for row in tables.comparisons))


def main_share(tables: Tables) -> Share:
    """Return the labelled share of the main comparison, or the first."""
    return next((row.share for row in tables.comparisons if row.holm is not None), shares_of(tables)[0])


def baselines_of(tables: Tables) -> list[str]:
    """List the variants that others are compared with, in the study's order."""
    return list(dict.fromkeys(row.baseline for row in tables.comparisons if row.baseline))


def curve_variants(tables: Tables) -> list[str]:
    """List the variants of the learning curve."""
    return [arm.variant for arm in tables.arms if arm.in_curve]


def seeds_of(tables: Tables, share: Share) -> list[int]:
    """List the seeds at a labelled share."""
    return list(dict.fromkeys(row.seed for row in tables.values if row.share == share))


def of_part(rows: Sequence[Comparison], split: str, share: Share, baseline: str) -> list[Comparison]:
    """Choose the comparisons with one baseline ("": the means), on one split at one labelled share."""
    return [r for r in rows if (r.split, r.share, r.baseline) == (split, share, baseline)]


def _arms(tables: Tables) -> Iterator[str]:
    yield "| variant | what | settings |"
    yield "| --- | --- | --- |"
    for arm in tables.arms:
        settings = " ".join(f"`{setting}`" for setting in arm.settings.split(SEPARATOR) if setting)
        name = arm.variant if arm.variant == EVERY else f"`{arm.variant}`"
        yield f"| {name} | {arm.says} | {settings} |"


def _told(split: Split) -> str:
    times = split.evaluated.split(SEPARATOR)
    if len(times) == 1:
        return f"The {split.split} split was evaluated once, at {times[0]}."
    return (
        f"**The {split.split} split was evaluated {len(times)} times**: at {', again at '.join(times)}. "
        "What is shown is the last."
    )


def _part(tables: Tables, split: Split, share: Share) -> Iterator[str]:
    labelled = "" if share is None else f", {100 * share:.3g}% of the labels"
    seeds = ", ".join(map(str, seeds_of(tables, share)))
    yield f"### {split.corpus} {split.split}{labelled}: {split.turns} turns, {split.dialogues} dialogues"
    yield ""
    yield f"Seeds {seeds}; intervals over seeds and dialogues."
    yield ""
    yield from _figures(tables, split, share)
    yield ""
    for baseline in baselines_of(tables):
        rows = of_part(tables.comparisons, split.split, share, baseline)
        yield f"Difference to `{baseline}` (**bold**: the interval excludes 0):"
        yield ""
        yield from _differences(rows)
        yield ""
    tests = [r for r in tables.comparisons if r.holm is not None]
    if family := [r for r in tests if (r.split, r.share) == (split.split, share)]:
        yield f"Main comparison; p is two-sided, Holm's correction is over these {len(family)}:"
        yield ""
        yield from _tests(family)
        yield ""


def _figures(tables: Tables, split: Split, share: Share) -> Iterator[str]:
    held = [v for v in tables.values if (v.split, v.share) == (split.split, share)]
    columns = [name for name in FURTHER_COLUMNS if any(v.measure == name for v in held)]
    titles = [*METRIC_TITLES.values(), *(FURTHER_COLUMNS[name][0] for name in columns)]
    yield f"| variant | {' | '.join(titles)} |"
    yield f"| --- | {' | '.join(['---'] * len(METRICS) + ['---:'] * len(columns))} |"
    for name, cells in _by_variant(of_part(tables.comparisons, split.split, share, "")).items():
        of_name = [v for v in held if v.variant == name]
        further = [_mean(of_name, column, FURTHER_COLUMNS[column][1]) for column in columns]
        yield f"| `{name}` | {' | '.join([*(_percent(cells[m]) for m in METRICS), *further])} |"


def _differences(rows: Sequence[Comparison]) -> Iterator[str]:
    yield f"| variant | {' | '.join(METRIC_TITLES.values())} |"
    yield f"| --- | {' | '.join(['---'] * len(METRICS))} |"
    for name, cells in _by_variant(rows).items():
        yield f"| `{name}` | {' | '.join(_percent(cells[m], signed=True) for m in METRICS)} |"


def _tests(rows: Sequence[Comparison]) -> Iterator[str]:
    yield "| variant | baseline | measure | difference | p | p, corrected |"
    yield "| --- | --- | --- | --- | ---: | ---: |"
    for row in rows:
        yield (
            f"| `{row.variant}` | `{row.baseline}` | {METRIC_TITLES[row.measure]} | "
            f"{_percent(row, signed=True)} | {row.p:.3f} | {row.holm:.3f} |"
        )


def _cost(tables: Tables) -> Iterator[str]:
    rows = [v for v in tables.values if (v.split, v.measure) == (TRAINING, MINUTES)]
    if rows:
        yield "| variant | runs | CPU minutes of a run |"
        yield "| --- | ---: | ---: |"
        for name in dict.fromkeys(row.variant for row in rows):
            minutes = [row.value for row in rows if row.variant == name]
            yield f"| `{name}` | {len(minutes)} | {statistics.mean(minutes):.1f} |"
        yield ""
        yield f"All runs: {sum(row.value for row in rows):.0f} CPU minutes."
        yield ""


def _by_variant(rows: Sequence[Comparison]) -> dict[str, dict[str, Comparison]]:
    """Arrange rows by variant and measure."""
    found: dict[str, dict[str, Comparison]] = {}
    for row in rows:
        found.setdefault(row.variant, {})[row.measure] = row
    return found


def _mean(values: Sequence[Value], measure: str, shape: str) -> str:
    found = [value.value for value in values if value.measure == measure]
    return shape.format(statistics.mean(found)) if found else "-"


def _percent(row: Comparison, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value = f"{100 * row.value:{sign}.1f}"
    shown = f"**{value}**" if signed and row.excludes_zero else value
    return f"{shown} [{100 * row.low:{sign}.1f}, {100 * row.high:{sign}.1f}]"
