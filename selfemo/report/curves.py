"""Draws the curves of a run: the records of supervised steps, iterations and rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfemo.records.reading import Json, RunRecords
from selfemo.report.charts import Chart, line_chart

DECADE = 10.0
"""Least ratio of the largest to the smallest value for a logarithmic axis: less spans no power of ten
to mark.
"""
BOUND_SUFFIX = "_bound"
"""Ends the name of a field that bounds another one; drawn dashed."""
MAX_POINTS = 400
"""Most points of a curve. A longer one is thinned evenly, and its last point kept."""


@dataclass(frozen=True)
class Curve:
    """One chart: its title, its fields with their names, and its axis."""

    title: str
    fields: Mapping[str, str]
    log: bool = False
    bottom: float | None = None


_BY_ROLE = {"recognizer": "recognizer", "responder": "responder"}
ITERATION_CURVES = (
    Curve("Reward", {"reward": "reward, mean of all samples"}),
    Curve("Smoothed IoU of samples", {f"siou_{role}": role for role in _BY_ROLE}, bottom=0),
    Curve("Agreement within groups", {f"agreement_{role}": role for role in _BY_ROLE}, bottom=0),
    Curve("KL to the SFT model", {"kl": "KL, nats per token"}),
    Curve("Entropy", {"entropy": "entropy, nats per token"}),
    Curve("Log-probability of sampled tokens", {"logprob_mean": "mean, nats per token"}),
    Curve("Policy ratio", {"ratio_mean": "mean ratio"}),
    Curve(
        "Clipped share of tokens",
        {
            "clipped_share": "clipped share",
            "clipped_low_share": "ratio below the clip",
            "clipped_high_share": "ratio above the clip",
        },
        bottom=0,
    ),
    Curve(
        "Logprob gap, engine to trainer",
        {
            "logprob_gap_max": "largest gap, nats",
            "logprob_gap_mean": "mean gap, nats",
            "logprob_gap_max_bound": "bound of the largest",
            "logprob_gap_mean_bound": "bound of the mean",
        },
        log=True,
    ),
    Curve(
        "Importance weight, engine to trainer",
        {"importance_weight_mean": "mean weight", "importance_truncated_share": "share of tokens truncated"},
        bottom=0,
    ),
    Curve("Loss of supervised examples", {"supervised_loss": "loss, nats per token"}, bottom=0),
    Curve("Learning rate", {"learning_rate": "learning rate"}, bottom=0),
    Curve("Gradient norm", {"grad_norm": "norm before clipping"}, bottom=0),
    Curve(
        "Completion length",
        {f"completion_tokens_{role}": f"{role}, mean" for role in _BY_ROLE}
        | {f"completion_tokens_max_{role}": f"{role}, longest" for role in _BY_ROLE},
        bottom=0,
    ),
    Curve(
        "Groups without a ranking",
        {"groups_without_ranking": "groups that teach nothing", "groups": "groups"},
        bottom=0,
    ),
)
COMPONENT_PREFIX = "reward_"
"""Stands before a component's name in an iteration's record."""
SFT_CURVE = Curve("Loss of the supervised start", {"loss": "loss, nats per token"})


def curves(records: RunRecords) -> list[Chart]:
    """Draw every curve of which the run recorded a figure."""
    sft, iterations = records.of("sft"), records.of("iteration")
    charts = [_chart(SFT_CURVE, sft, "step", "SFT step")] if sft else []
    reward, *others = ITERATION_CURVES
    every = (reward, component_curve(iterations), *others)
    return charts + [
        _chart(curve, iterations, "iteration", "iteration") for curve in every if _present(curve, iterations)
    ]


def component_curve(iterations: Sequence[Json]) -> Curve:
    """Define one line for each reward component that the run recorded.

    Components that this checkout does not have are included.
    """
    fields = sorted(
        {field for record in iterations for field in record if field.startswith(COMPONENT_PREFIX)}
    )
    return Curve(
        "Reward by component",
        {field: _component_title(field.removeprefix(COMPONENT_PREFIX)) for field in fields},
        bottom=0,
    )


def _component_title(name: str) -> str:
    role, _, rest = name.partition("_")
    return f"{rest}, {role}" if role in _BY_ROLE and rest else name


def _present(curve: Curve, events: Sequence[Json]) -> list[str]:
    """List the fields that some record has.

    A component added before a resume is missing from the records before it.
    """
    return [field for field in curve.fields if any(event.get(field) is not None for event in events)]


def _chart(curve: Curve, events: Sequence[Json], axis: str, xlabel: str) -> Chart:
    stride = -(-len(events) // MAX_POINTS)
    shown = list(events[::-stride][::-1])
    series = {
        curve.fields[field]: [_value(event, field) for event in shown] for field in _present(curve, shown)
    }
    values = [value for line in series.values() for value in line if math.isfinite(value)]
    least = min(values, default=0.0)
    log = curve.log and least > 0 and max(values) / least > DECADE
    # a penalty lies below 0
    bottom = curve.bottom if curve.bottom is None or least >= curve.bottom else None
    dashed = [name for field, name in curve.fields.items() if field.endswith(BOUND_SUFFIX)]
    return line_chart(curve.title, [event[axis] for event in shown], series, xlabel, log, bottom, dashed)


def _value(event: Json, field: str) -> float:
    """Return NaN, a gap in the line, if a record lacks the field or has null for a figure that was not
    finite.
    """
    value = event.get(field)
    return math.nan if value is None else float(value)
