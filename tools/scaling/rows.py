"""One point of a scaling study, with the columns that the field's tables have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["measured", "planned"]
Study = Literal["strong", "weak"]


@dataclass(frozen=True)
class Row:
    """One run, or one plan. "GPUs" are processes where `hardware` is a CPU."""

    kind: Kind
    study: Study
    """strong: the batch stays; weak: it grows with the GPUs."""
    hardware: str
    algorithm: str
    model: str
    policy_lag: int
    """Optimizer steps between the weights that sampled and those that are trained: 0, this project is
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
    """None where the run counts it as training."""
    train_s: float
    sync_s: float
    other_s: float
    sync_bytes: int
    """Between ranks, per weight sync, over all of them."""
    planned_sync_bytes: int
    """What the planner says of the same layout and path: equal where both are exact."""
    efficiency: float = 1.0
    """tokens_per_s_per_gpu as a share of the study's smallest run's."""
    note: str = ""


def with_efficiency(rows: Iterable[Row]) -> list[Row]:
    """Every row against the smallest run of its kind, study and model."""
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
    """Measured before planned, then by study, model and size."""
    return sorted(rows, key=lambda r: (r.kind, r.study, r.model, r.gpus))
