"""Declares the parts of a run's records that readers need, so that a damaged one is named.

A record may hold more, and a figure that was not finite is null. Records are checked and not converted.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from pydantic import TypeAdapter, ValidationError

from selfemo.corpora.labelled import LabelCounts

Figure = float | None


class _Sync(TypedDict):
    version: int
    seconds: float
    path: str
    received_bytes: int
    probed: Any


class _Sft(TypedDict):
    step: int


class _Eval(TypedDict):
    stage: str
    n: int
    accuracy: NotRequired[float]
    per_label_f1: dict[str, float]
    confusion: NotRequired[list[list[int]]]


class _Outcomes(TypedDict):
    kept: dict[str, int]
    dropped: dict[str, int]


class _Iteration(TypedDict):
    iteration: int
    reward: float
    samples: int
    tokens: int
    logprob_gap_max: Figure
    step_applied: bool
    flywheel: NotRequired[_Outcomes]
    seconds: dict[str, float]


class _Phases(TypedDict):
    ranks: dict[int, list[tuple[str, float, float]]]


class _Memory(TypedDict):
    ranks: dict[int, dict[str, int]]


class _Turn(TypedDict):
    speaker: str
    text: str
    labels: list[str]


class _Candidate(TypedDict):
    text: str
    score: float
    rewards: dict[str, float]
    failed_gates: list[str]


class _Group(TypedDict):
    role: str
    speaker: str
    turn: int
    gold: list[str]
    target: list[str]
    consensus: list[str]
    agreement: float
    candidates: list[_Candidate]


class _Dialogue(TypedDict):
    iteration: int
    source: str
    dialogue: list[_Turn]
    groups: list[_Group]


class _TrainingDialogues(TypedDict):
    counts: LabelCounts


class _Summary(TypedDict):
    world_size: int
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    backend: str
    trainer: str
    engine: str
    corpus: str
    seconds: dict[str, float]
    eval: dict[str, dict[str, Any]]


_SHAPES: dict[str, TypeAdapter[Any]] = {
    "sync": TypeAdapter(_Sync),
    "sft": TypeAdapter(_Sft),
    "eval": TypeAdapter(_Eval),
    "iteration": TypeAdapter(_Iteration),
    "phases": TypeAdapter(_Phases),
    "memory": TypeAdapter(_Memory),
    "dialogue": TypeAdapter(_Dialogue),
    "summary": TypeAdapter(_Summary),
    "training dialogues": TypeAdapter(_TrainingDialogues),
}


def misshapen(kind: str, record: dict[str, Any]) -> str:
    """Say what is wrong with a record: an event of metrics.jsonl, a dialogue or a summary; "" if nothing is.

    A kind that is not known has no fault.
    """
    shape = _SHAPES.get(kind) if isinstance(kind, str) else None
    try:
        if shape is not None:
            shape.validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
    text = [name for name, value in record.items() if isinstance(value, str) and name != "event"]
    return f"{text[0]}: a text, expected a number" if kind in ("iteration", "sft") and text else ""
