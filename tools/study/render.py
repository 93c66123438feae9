"""Renders a study's tables as Markdown. Figures are in percent, intervals of 95%."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from selfemo.evaluation.intervals import METRICS
from tools.study.tables import (
    EVERY,
    FAILURES,
    MINUTES,
    NEUTRAL_SHARE,
    SEPARATOR,
    TRAINING,
    Comparison,
    Split,
    Tables,
    Value,
)

METRIC_TITLES = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}
FURTHER_COLUMNS = {
    NEUTRAL_SHARE: ("share of neutral", "{:.1%}"),
    FAILURES: ("format failures", "{:.1%}"),
    "siou": ("sIoU", "{:.3f}"),
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
    return sorted({row.seed for row in tables.values if row.share == share})


def neutral_of(tables: Tables, split: Split, share: Share) -> dict[str, float]:
    """Return each variant's share of neutral, the mean over seeds: it stands beside every accuracy."""
    found: dict[str, list[float]] = {}
    for row in tables.values:
        if (row.split, row.share, row.measure) == (split.split, share, NEUTRAL_SHARE):
            found.setdefault(row.variant, []).append(row.value)
    return {variant: statistics.mean(values) for variant, values in found.items()}


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
    seeds, neutral = seeds_of(tables, share), neutral_of(tables, split, share)
    yield f"### {split.corpus} {split.split}{labelled}: {split.turns} turns, {split.dialogues} dialogues"
    yield ""
    over = "seeds and dialogues" if len(seeds) > 1 else "dialogues alone, since there is one seed"
    yield f"Seeds {', '.join(map(str, seeds))}; intervals over {over}. Gold: {split.neutral:.1%} neutral."
    yield ""
    yield from _figures(tables, split, share)
    yield ""
    for baseline in baselines_of(tables):
        rows = of_part(tables.comparisons, split.split, share, baseline)
        yield f"Difference to `{baseline}` (**bold**: the interval excludes 0):"
        yield ""
        yield from _differences(rows, neutral)
        yield ""
    tests = [r for r in tables.comparisons if r.holm is not None]
    if family := [r for r in tests if (r.split, r.share) == (split.split, share)]:
        yield f"Main comparison; p is two-sided, Holm's correction is over these {len(family)}:"
        yield ""
        yield from _tests(family, neutral)
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


def _differences(rows: Sequence[Comparison], neutral: Mapping[str, float]) -> Iterator[str]:
    yield f"| variant | {' | '.join(METRIC_TITLES.values())} | share of neutral (difference) |"
    yield f"| --- | {' | '.join(['---'] * len(METRICS))} | ---: |"
    for name, cells in _by_variant(rows).items():
        figures = " | ".join(_percent(cells[m], signed=True) for m in METRICS)
        yield f"| `{name}` | {figures} | {_neutral(cells[METRICS[0]], neutral)} |"


def _tests(rows: Sequence[Comparison], neutral: Mapping[str, float]) -> Iterator[str]:
    yield "| variant | baseline | measure | difference | share of neutral (difference) | p | p, corrected |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
    for row in rows:
        yield (
            f"| `{row.variant}` | `{row.baseline}` | {METRIC_TITLES[row.measure]} | "
            f"{_percent(row, signed=True)} | {_neutral(row, neutral)} | {row.p:.4f} | {row.holm:.4f} |"
        )


def _cost(tables: Tables) -> Iterator[str]:
    rows = [v for v in tables.values if v.measure == MINUTES]
    if rows:
        columns = list(dict.fromkeys([TRAINING, *(row.split for row in rows)]))
        asking = "".join(f" asking about {split} |" for split in columns[1:])
        yield f"| CPU minutes | runs | a run |{asking}"
        yield "| --- |" + " ---: |" * (1 + len(columns))
        for name in dict.fromkeys(row.variant for row in rows):
            of_name = [[v.value for v in rows if (v.variant, v.split) == (name, c)] for c in columns]
            means = [f"{statistics.mean(minutes):.1f}" if minutes else "-" for minutes in of_name]
            yield f"| `{name}` | {len(of_name[0])} | {' | '.join(means)} |"
        yield ""
        yield f"Together {sum(row.value for row in rows):.0f} CPU minutes."
        yield ""


def _neutral(row: Comparison, neutral: Mapping[str, float]) -> str:
    """Return the variant's share of neutral, and how far it is from the baseline's, in percentage points."""
    return f"{neutral[row.variant]:.1%} ({100 * (neutral[row.variant] - neutral[row.baseline]):+.1f})"


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
