"""Decides whether a group's best sample is kept, and names the reason.

These are pure functions of scored groups; the caller holds the state.

Kept
    annotated        the best sample's smoothed IoU with the gold set is at least keep_annotated
    self-generated   a turn the model wrote: the samples that read it agree enough and not too much (mean
                     pairwise smoothed IoU in [keep_low, keep_high]), and as a reply it was read as intended
                     (expression score at least keep_expression)
    expression       the reply itself, under the same two conditions
    consensus        a real turn without annotation: the teacher's labels, or the vote of the group that read
                     it if there is no teacher. Every turn is kept: neither the cap nor the search for near
                     duplicates applies
    read back        a kept reply that the teacher of the next round reads as it was meant, in its views: the
                     vote's smoothed IoU with the target is at least keep_expression. It teaches both tasks
Dropped, first reason that applies
    no answer, low score, not read, low agreement, full agreement, low expression    the rule above
    read otherwise   a kept reply that the teacher reads as something else
    taught           a group on a turn that the teacher has read already
    held-out text    the turn equals a dev or test text, or its context holds a long one
    not considered   more groups passed than candidates_per_iteration, and this is none of those taken
    near duplicate   of a kept text of the same role
    label cap        its label already has its share of all that passed so far
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selfemo.config.schema import FlywheelConfig
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.rewards.scoring import ScoredGroup

CONSENSUS: Literal["consensus"] = "consensus"
READ_BACK: Literal["read back"] = "read back"
READINGS = (CONSENSUS, READ_BACK)
"""Reasons of kept records that say how a turn reads. They teach, open no episode, and use up no cap."""
KeepReason = Literal["annotated", "self-generated", "expression", "consensus", "read back"]
DropReason = Literal[
    "no answer",
    "low score",
    "not read",
    "read otherwise",
    "taught",
    "low agreement",
    "full agreement",
    "low expression",
    "held-out text",
    "not considered",
    "near duplicate",
    "label cap",
]
Place = tuple[int, int, int]
"""(iteration, episode, turn)."""


@dataclass(frozen=True)
class Evidence:
    """The figures on a turn that the model wrote."""

    expression: float | None
    """Score of the reply; None if this batch holds no such reply."""
    agreement: float | None
    """Mean pairwise smoothed IoU of the samples that read it; None if the episode ended before."""


def gather_evidence(groups: Sequence[ScoredGroup]) -> dict[Place, Evidence]:
    """Collect the evidence on every generated turn of a batch.

    The key is the place where the turn is read, one turn after it was written.
    """
    written = {_place(g, 1): g.scores[g.best] for g in groups if g.group.role == "responder"}
    read = {
        _place(g, 0): g.group.consensus.agreement
        for g in groups
        if g.group.role == "recognizer" and g.group.turn > 0
    }
    return {place: Evidence(written.get(place), read.get(place)) for place in {*written, *read}}


def agreement_on(scored: ScoredGroup, evidence: Mapping[Place, Evidence]) -> float:
    """Return the agreement (mean pairwise smoothed IoU) of the samples that read a group's turn.

    They are a recognizer's own samples; for a reply, the samples that read it, and 0 if there are none.
    """
    if scored.group.role == "recognizer":
        return scored.group.consensus.agreement
    known = evidence.get(_place(scored, 1))
    return known.agreement or 0.0 if known is not None else 0.0


def judge(
    scored: ScoredGroup,
    evidence: Mapping[Place, Evidence],
    config: FlywheelConfig,
    has_reader: bool = False,
) -> tuple[bool, KeepReason | DropReason]:
    """Decide whether a group's best sample is good enough, and name the reason.

    Args:
        has_reader: a teacher will read the kept replies, so that the group that reads one decides nothing.
    """
    best = scored.scores[scored.best]
    if best == 0.0:
        return False, "no answer"
    if scored.group.role == "recognizer" and scored.group.gold:
        return (True, "annotated") if best >= config.keep_annotated else (False, "low score")
    if scored.group.is_real_unlabelled:
        return (False, "taught") if scored.group.taught is not None else (True, CONSENSUS)
    if has_reader and scored.group.role == "responder":
        return (True, "expression") if best >= config.keep_expression else (False, "low expression")
    known = evidence.get(_place(scored, 1 if scored.group.role == "responder" else 0), Evidence(None, None))
    if known.agreement is None or known.expression is None:
        return False, "not read"
    if known.agreement < config.keep_low:
        return False, "low agreement"
    if known.agreement > config.keep_high:
        return False, "full agreement"
    if known.expression < config.keep_expression:
        return False, "low expression"
    return True, "expression" if scored.group.role == "responder" else "self-generated"


def judge_reading(
    scored: ScoredGroup, config: FlywheelConfig, score: SmoothedIoU
) -> tuple[bool, KeepReason | DropReason]:
    """Decide whether a teacher, whose answers the group holds, reads a reply as it was meant."""
    vote = scored.group.consensus.labels
    if not vote:
        return False, "no answer"
    is_as_meant = score(vote, scored.group.target or ()) >= config.keep_expression
    return (True, READ_BACK) if is_as_meant else (False, "read otherwise")


def within_cap(label: str, kept: int, passed: int, shares: Mapping[str, float], floor: float) -> bool:
    """Tell whether one more record of this label fits under its cap.

    A label may have its share of all records that passed the other rules, this one included. The cap is
    relative to the records that passed, not to those that were kept: otherwise one label that the model never
    predicts would bring the flywheel to a halt.

    Args:
        kept: records of this label kept so far.
        passed: records of any label that passed the other rules so far, without this one.
        shares: label shares of the training split.
        floor: least share of any label that occurs there.
    """
    share = shares.get(label, 0.0)
    return kept + 1 <= math.ceil(max(share, floor if share > 0 else 0.0) * (passed + 1) - 1e-9)


def _place(scored: ScoredGroup, offset: int) -> Place:
    return (scored.group.iteration, scored.group.episode, scored.group.turn + offset)
