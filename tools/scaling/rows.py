"""Defines one point of a scaling study, with the columns that the field's tables have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["measured", "planned"]
Study = Literal["strong", "weak"]


@dataclass(frozen=True)
class Row:
    """One run, or one plan. "GPUs" are processes if `hardware` is a CPU."""

    kind: Kind
    study: Study
    """strong: the batch stays the same; weak: it grows with the GPUs."""
    hardware: str
    algorithm: str
    model: str
    policy_lag: int
    """Optimizer steps between the weights that sampled and those that are trained. 0: this project is
    on-policy.
    """
    mean_tokens: float
    """Mean completion length."""
    max_tokens: int
    """Longest completion; the step waits for it."""
    gpus: int
    groups: int
    """Prompts per iteration."""
    samples: int
    """Completions trained on per iteration: the global batch."""
    generation_layout: str
    training_layout: str
    tokens_per_s_per_gpu: float
    """Completion tokens trained on, per second of the whole step."""
    step_s: float
    generate_s: float
    logprob_s: float | None
    """Seconds of old and reference logprobs; None if the run counts them as training."""
    train_s: float
    sync_s: float
    other_s: float
    sync_bytes: int
    """Bytes sent between ranks per weight sync, summed over all ranks."""
    planned_sync_bytes: int
    """Bytes that the planner expects for the same layout and path: equal if both are exact."""
    efficiency: float = 1.0
    """tokens_per_s_per_gpu as a share of the study's smallest run's."""
    note: str = ""


def with_efficiency(rows: Iterable[Row]) -> list[Row]:
    """Fill in each row's efficiency against the smallest run of its kind, study and model."""
    found = list(rows)

    def base(row: Row) -> Row:
        return min(
            (r for r in found if (r.kind, r.study, r.model) == (row.kind, row.study, row.model)),
            key=lambda r: r.gpus,
        )

    return [
        replace(row, efficiency=row.tokens_per_s_per_gpu / base(row).tokens_per_s_per_gpu) for row in found
    ]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Sort rows: measured before planned, then by study, model and size."""
    return sorted(rows, key=lambda r: (r.kind, r.study, r.model, r.gpus))
