"""Declares the parts of a run's records that readers need, so that a damaged one is named.

A record may hold more, and a figure that was not finite is null. Records are checked and not converted, so a
number written as text is a fault.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from selfemo.records.contradictions import contradiction

Figure = float | None
Rank = Annotated[str, Field(pattern="^[0-9]{1,6}$")]


def _span(value: list[Any]) -> list[Any]:
    match value:
        case [str(), int() | float() as start, int() | float() as end] if start <= end:
            return value
    raise ValueError("expected a phase, its start and its end in seconds")


Span = Annotated[list[Any], AfterValidator(_span)]


class _Sync(TypedDict):
    version: int
    seconds: float
    path: str
    received_bytes: int
    probed: bool


class _Sft(TypedDict):
    step: int


class _Eval(TypedDict):
    stage: str
    n: Annotated[int, Field(gt=0)]
    accuracy: NotRequired[Figure]
    weighted_f1: NotRequired[Figure]
    macro_f1: NotRequired[Figure]
    siou: NotRequired[Figure]
    exact_match: NotRequired[Figure]
    format_failure_rate: NotRequired[Figure]
    label_entropy: NotRequired[Figure]
    neutral_share: NotRequired[Figure]
    per_label_f1: dict[str, float]
    confusion: NotRequired[list[list[int]]]
    readings: NotRequired[list[list[str]]]


class _Outcomes(TypedDict):
    kept: dict[str, int]
    dropped: dict[str, int]


class _Seconds(TypedDict):
    rollout: float
    train: float
    sync: float


class _Iteration(TypedDict):
    iteration: int
    reward: float
    samples: int
    tokens: int
    logprob_gap_max: Figure
    step_applied: bool
    flywheel: NotRequired[_Outcomes]
    seconds: _Seconds


class _Phases(TypedDict):
    ranks: dict[Rank, list[Span]]


class _Held(TypedDict):
    weights: int
    gradients: int
    optimizer: int
    reference: int


class _Memory(TypedDict):
    ranks: dict[Rank, _Held]


class _Turn(TypedDict):
    speaker: str
    text: str
    labels: list[str]


class _Candidate(TypedDict):
    view: NotRequired[str]
    text: str
    read: NotRequired[list[str]]
    score: float
    rewards: dict[str, float]
    total: NotRequired[Figure]
    advantage: NotRequired[Figure]
    weight: NotRequired[Figure]
    failed_gates: list[str]


class _Group(TypedDict):
    role: str
    speaker: str
    turn: int
    gold: list[str]
    target: list[str]
    consensus: list[str]
    agreement: float
    candidates: Annotated[list[_Candidate], Field(min_length=1)]


class _Dialogue(TypedDict):
    iteration: int
    source: str
    parent: NotRequired[int | None]
    seed_turns: NotRequired[int]
    dialogue: list[_Turn]
    groups: list[_Group]


@with_config(ConfigDict(extra="forbid"))
class _Counts(TypedDict):
    labelled_dialogues: int
    labelled_turns: int
    unlabelled_dialogues: int
    unlabelled_turns: int
    revealed_dialogues: int


class _TrainingDialogues(TypedDict):
    counts: _Counts


class _Total(TypedDict):
    total: float


class _Summary(TypedDict):
    world_size: int
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    backend: str
    trainer: str
    engine: str
    corpus: str
    seconds: _Total
    eval: dict[str, dict[str, float]]


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

    A kind that is not known has no fault, if it is a text.
    """
    if not isinstance(kind, str):
        return "event: expected a text"
    shape = _SHAPES.get(kind)
    try:
        if shape is not None:
            shape.validate_python(record, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if kind in ("iteration", "sft"):
        figures = (name for name in record if name not in ("event", "flywheel", "seconds"))
        odd = [name for name in figures if not isinstance(record[name], int | float | None)]
        return f"{odd[0]}: expected a number" if odd else ""
    return contradiction(kind, record)
