"""Finds what the parts of one record say against each other, where each part for itself is sound.

A reader of the record would look for a row, or for a turn, that is not there.
"""

from __future__ import annotations

from typing import Any


def contradiction(kind: str, record: dict[str, Any]) -> str:
    """Say which part of a record does not fit the others; "" if all fit.

    Args:
        kind: as in `misshapen`, which has found every part to be of its type.
    """
    if kind == "eval":
        return _odd_size(record)
    return _odd_place(record) if kind == "dialogue" else ""


def _odd_size(evaluation: dict[str, Any]) -> str:
    """Check that an evaluation has a reading for each turn, and a row of its matrix for each label."""
    turns, labels = evaluation["n"], len(evaluation["per_label_f1"])
    if len(evaluation.get("readings", range(turns))) != turns:
        return f"readings: expected {turns}, one for each turn"
    rows = evaluation.get("confusion", [[0] * (labels + 1)] * labels)
    if len(rows) != labels or any(len(row) != labels + 1 for row in rows):
        return f"confusion: expected {labels} rows of {labels + 1} counts, as per_label_f1 has labels"
    return ""


def _odd_place(dialogue: dict[str, Any]) -> str:
    """Check that every group belongs to a turn of its dialogue: recognizers read it, responders wrote it."""
    turns, groups = len(dialogue["dialogue"]), dialogue["groups"]
    wrote = [group["turn"] for group in groups if group["role"] == "responder"]
    seeds = dialogue.get("seed_turns", turns - len(wrote))
    if not 0 <= seeds <= turns:
        return f"seed_turns: expected 0 to {turns}, the turns of the dialogue"
    places = [seeds + turn for turn in wrote[: turns - seeds]]
    places += [seeds - 1 + group["turn"] for group in groups if group["role"] == "recognizer"]
    if all(0 <= place < turns for place in places):
        return ""
    return f"groups: one is of turn {next(p for p in places if not 0 <= p < turns)} of {turns}"
