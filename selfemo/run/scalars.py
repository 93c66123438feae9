"""Turns a metrics record into named scalars, by the one mapping that every tracker shares.

A name is "group/figure", and a group has one axis: SFT figures run over SFT steps, syncs over weight
versions, evaluations over the run's stages, everything else over iterations. Values that are no number over
steps (time lines, confusion matrices) stay in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

STAGES = ("start", "sft", "final")
"""Evaluations are numbered in this order."""
AXES = {"sft": "step", "sync": "version", "iteration": "iteration"}
"""Event -> the field that numbers its records."""
_GROUPS = (
    ("reward", "reward"),
    ("siou", "siou"),
    ("agreement", "siou"),
    ("prompt_tokens", "lengths"),
    ("completion_tokens", "lengths"),
    ("unfinished_share", "lengths"),
    ("flywheel", "flywheel"),
    ("seconds", "seconds"),
)
"""Prefix of an iteration's field -> the group that shows it; other fields belong to the policy's."""
GROUP_AXES = {"sft": "sft", "sync": "sync", "eval": "eval", "policy": "iteration"} | {
    group: "iteration" for _, group in _GROUPS
}
"""Group -> the event whose records it is made of."""


@dataclass(frozen=True)
class Scalars:
    """One record's figures."""

    event: str
    step: int
    values: dict[str, float]
    """Name in the form "group/figure" -> value."""


def scalars_of(record: Mapping[str, Any]) -> Scalars | None:
    """Extract the scalars of one record of metrics.jsonl; None for an event or a stage that has none."""
    event = record["event"]
    if event == "eval" and record["stage"] in STAGES:
        figures = {name: value for name, value in record.items() if name != "confusion"}
        return Scalars(
            event, STAGES.index(record["stage"]), {f"eval/{name}": value for name, value in _numbers(figures)}
        )
    if event not in AXES:
        return None
    step = record[AXES[event]]
    figures = {name: value for name, value in record.items() if name != AXES[event]}
    return Scalars(event, step, {f"{_group(event, name)}/{name}": value for name, value in _numbers(figures)})


def _group(event: str, name: str) -> str:
    if event != "iteration":
        return event
    return next((group for prefix, group in _GROUPS if name.startswith(prefix)), "policy")


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number; a number inside a mapping has a dotted name."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):  # bool too: in a curve of ones, a skipped step is a 0
            yield f"{prefix}{name}", float(value)
