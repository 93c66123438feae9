"""Tells what came of a run, for somebody who sees one for the first time.

Figures of every stage with intervals, what each stage read in the same five turns, a dialogue that the model
wrote in self-play, and a command to talk with it. Everything is computed from the run's records, so that an
interrupted run tells the same.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.common.printable import one_line
from selfemo.emotions.answer import SEPARATOR
from selfemo.evaluation.intervals import Interval, bootstrap, paired_bootstrap
from selfemo.evaluation.metrics import NO_ANSWER
from selfemo.evaluation.turns import EvaluationTurn
from selfemo.records.reading import parse_json
from selfemo.records.shapes import misshapen
from selfemo.report.model_card import STAGES
from selfemo.selfplay.prompts import clean_line

SHOWN_TURNS = 5
DIALOGUES_SEARCHED = 8
"""Newest dialogues in which one with a generated line is looked for."""
LINES_TO_TRY = ("I lost my keys again and I feel terrible.", "They gave me the job! I start on Monday.")


def primary(readings: Sequence[Sequence[str]]) -> list[str]:
    """Return the primary label of each reading, NO_ANSWER for one without labels."""
    return [labels[0] if labels else NO_ANSWER for labels in readings]


def with_intervals(
    predicted: Mapping[str, Sequence[str]], turns: Sequence[EvaluationTurn], seed: int
) -> dict[str, tuple[Interval, ...]]:
    """Compute 95% intervals over dialogues of every stage's accuracy, weighted and macro F1.

    Args:
        predicted: {stage: primary label of each turn}.
    """
    gold, dialogues = [turn.gold[0] for turn in turns], [turn.dialogue for turn in turns]
    found = {stage: bootstrap(gold, named, dialogues, seed) for stage, named in predicted.items()}
    if "sft" in predicted and "final" in predicted:
        found["by self-play"] = paired_bootstrap(gold, predicted["final"], predicted["sft"], dialogues, seed)
    return found


def figure_rows(intervals: Mapping[str, Sequence[Interval]]) -> list[list[str]]:
    """Make the table's rows: a name, accuracy and weighted F1 with intervals, macro F1."""
    return [
        [STAGES.get(stage, stage), *(_figure(interval, signed=stage not in STAGES) for interval in mine)]
        for stage in (*STAGES, "by self-play")
        if (mine := intervals.get(stage))
    ]


def verdict(intervals: Mapping[str, Sequence[Interval]]) -> str:
    """Say in one line whether self-play moved accuracy or weighted F1 by more than chance explains; "" if
    there was none."""
    told = [i for i in intervals.get("by self-play", ()) if i.metric != "macro_f1"]
    clear = [f"{i.metric.replace('_', ' ')} {i.value:+.3f}" for i in told if i.excludes_zero]
    if clear:
        return f"self-play   changed {' and '.join(clear)}: more than the choice of dialogues explains"
    return "self-play   made no difference that these dialogues could show" if told else ""


def turn_lines(
    turns: Sequence[EvaluationTurn], readings: Mapping[str, Sequence[Sequence[str]]]
) -> Iterator[str]:
    """Yield two lines for each of five turns, evenly spaced over the split: the words, and what was read."""
    count = min(SHOWN_TURNS, len(turns))
    for index in ((2 * k + 1) * len(turns) // (2 * count) for k in range(count)):
        spoken = turns[index].context[-1]
        read = [f"{STAGES.get(stage, stage)} {_labels(mine[index])}" for stage, mine in readings.items()]
        yield f"  {one_line(spoken.speaker)}: {one_line(spoken.text)}"
        yield f"      annotated {_labels(spoken.labels)}; {'; '.join(read)}"


def dialogue_lines(samples: Path) -> Iterator[str]:
    """Yield the newest recorded dialogue in which the model wrote a line; nothing if there is none.

    A damaged record is passed over, since the run has ended and the report will name it.
    """
    if not samples.is_file():
        return
    with samples.open("rb") as file:
        newest = list(filter(None, map(_sound_dialogue, deque(file, maxlen=DIALOGUES_SEARCHED))))
    record = next((r for r in reversed(newest) if len(r["dialogue"]) > r["seed_turns"]), None)
    if record is None:
        return
    yield f"a dialogue of self-play (iteration {record['iteration']}); the model wrote the lines with >"
    for index, turn in enumerate(record["dialogue"]):
        aim = _aim(record, index, turn["text"]) if index >= record["seed_turns"] else ""
        yield f"  {'>' if aim else ' '} {one_line(turn['speaker'])}: {one_line(turn['text'])}{aim}"


def chat_lines(model: Path) -> Iterator[str]:
    """Yield the command to talk with the finished model, and two lines to try."""
    program = Path(sys.argv[0])
    near = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program.name
    yield f"talk with it {near} chat --model {model}, and say, for instance:"
    yield from (f"             {line}" for line in LINES_TO_TRY)


def _sound_dialogue(line: bytes) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = parse_json(line)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(record, dict) and "seed_turns" in record
    return record if is_whole and not misshapen("dialogue", record) else None


def _aim(record: Mapping[str, Any], index: int, text: str) -> str:
    """Say what a generated line was to show, and what the model then read in it."""
    turn = index - record["seed_turns"]
    wrote = (g for g in record["groups"] if g["role"] == "responder" and g["turn"] == turn)
    if (group := next(wrote, None)) is None:
        return "   (of a group that was not recorded)"
    candidates = (c for c in group["candidates"] if clean_line(c["text"]) == text)
    read: Sequence[str] = next((c.get("read", []) for c in candidates), [])
    return f"   (asked for {_labels(group['target'])}; read as {_labels(read)})"


def _labels(labels: Sequence[str]) -> str:
    return SEPARATOR.join(labels) or "nothing"


def _figure(interval: Interval, signed: bool) -> str:
    sign = "+" if signed else ""
    bounds = f" [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"
    return f"{interval.value:{sign}.3f}{'' if interval.metric == 'macro_f1' else bounds}"
