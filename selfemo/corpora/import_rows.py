"""Make a raw dialogue of an import one line of the project's JSONL, labels mapped and every turn checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from selfemo.corpora.imports.raw import RawDialogue, RawTurn
from selfemo.corpora.label_map import LabelMap, UnknownLabel
from selfemo.corpora.problems import Problem
from selfemo.corpora.turns import MAX_LABELS, TurnChecker, sort_votes


@dataclass
class Imported:
    """Counts of an import, and the faults that left dialogues out."""

    dialogues: Counter[str] = field(default_factory=Counter)
    """By split."""
    turns: int = 0
    labelled: int = 0
    unmapped: int = 0
    """Turns whose labels the map sends to null, or that no map names."""
    cut: int = 0
    """Turns with more labels than MAX_LABELS, of which the first are kept."""
    problems: list[Problem] = field(default_factory=list)


def row_of(
    dialogue: RawDialogue, checker: TurnChecker, mapping: LabelMap, found: Imported
) -> dict[str, Any] | None:
    """Make a dialogue one line of JSONL; None after a reported problem."""
    turns: list[dict[str, Any]] = []
    left_out: dict[str, Any] = {}
    cut = 0
    for number, raw in enumerate(dialogue.turns, start=1):
        where = f"turn {number}"
        try:
            labels, votes = mapping.apply(raw.labels), _mapped_votes(raw, mapping)
        except UnknownLabel as unknown:
            checker.fault(dialogue.line, f"{where}: label {unknown} is not in the label map: add it there")
            return None
        if raw.labels and not labels:
            left_out[str(number)] = {
                "labels": [label for label in raw.labels if isinstance(label, str)],
                "votes": dict(raw.votes),
            }
            votes = {}
        cut += len(labels) > MAX_LABELS
        turn = checker.turn(dialogue.line, raw.speaker, raw.text, labels[:MAX_LABELS], votes, where=where)
        if turn is None:
            return None
        values = {"labels": list(turn.labels), "votes": dict(turn.votes)}
        turns.append({"speaker": turn.speaker, "text": turn.text, **{k: v for k, v in values.items() if v}})
    found.turns += len(turns)
    found.labelled += sum("labels" in turn for turn in turns)
    found.unmapped += len(left_out)
    found.cut += cut
    meta = {"source": dialogue.path.name, "line": dialogue.line, **dialogue.meta}
    return {
        "id": dialogue.dialogue_id,
        "turns": turns,
        "meta": {**meta, "left_out": left_out} if left_out else meta,
    }


def _mapped_votes(raw: RawTurn, mapping: LabelMap) -> dict[str, int]:
    """Add up the votes of source labels that map to one label, most first."""
    counts: Counter[str] = Counter()
    for label, count in raw.votes.items():
        for target in mapping.apply([label]):
            counts[target] += count
    return dict(sort_votes(counts))
