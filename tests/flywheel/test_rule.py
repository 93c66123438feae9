"""Test the selection rule: its caps, its duplicates, and the texts that may never enter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.config.schema import FlywheelConfig, RewardConfig
from selfemo.corpora.words import words
from selfemo.flywheel.duplicates import NearDuplicates
from selfemo.flywheel.rule import gather_evidence, judge, within_cap
from selfemo.rewards.scoring import ScoredGroup, score_group
from selfemo.selfplay.records import Group
from tests.helpers.groups import SCORE, recognizer_group, responder_group
from tests.helpers.scripted import LABELS

CONFIG = FlywheelConfig()


def score(group: Group) -> ScoredGroup:
    return score_group(group, RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0))


def outcome(*groups: Group) -> list[tuple[bool, str]]:
    scored = [score(group) for group in groups]
    return [judge(s, gather_evidence(scored), CONFIG) for s in scored]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["joy", "anger"], (True, "annotated")),
        (["joy, anger", "anger"], (True, "annotated")),
        (["joy, anger, sadness", "anger"], (False, "low score")),
        (["anger", "anger"], (False, "low score")),
        (["", ""], (False, "no answer")),
    ],
)
def test_annotated_groups_are_kept_by_their_best_sample(
    answers: list[str], expected: tuple[bool, str]
) -> None:
    assert outcome(recognizer_group(answers, ("joy",))) == [expected]


WELL_READ = [("it is grand", "joy"), ("meh then", "neutral")]
BADLY_READ = [("it is grand", "anger"), ("meh then", "neutral")]


@pytest.mark.parametrize(
    ("replies", "answers", "reply_reason", "reading_reason"),
    [
        (WELL_READ, ["joy", "joy", "joy", "anger"], "expression", "self-generated"),
        (WELL_READ, ["joy"] * 4, "full agreement", "full agreement"),
        (WELL_READ, ["joy", "anger", "sadness", "neutral"], "low agreement", "low agreement"),
        (BADLY_READ, ["joy", "joy", "joy", "anger"], "low expression", "low expression"),
        ([("a", None), ("b", "")], ["joy", "joy", "joy", "anger"], "no answer", "low expression"),
    ],
)
def test_generated_turns_need_agreement_and_expression(
    replies: list, answers: list, reply_reason: str, reading_reason: str
) -> None:
    reasons = [
        reason
        for _, reason in outcome(responder_group(replies, ("joy",)), recognizer_group(answers, None, turn=1))
    ]
    assert reasons == [reply_reason, reading_reason]


def test_a_turn_that_was_never_read_or_written_here_is_not_kept() -> None:
    assert outcome(responder_group(WELL_READ, ("joy",))) == [(False, "not read")]
    assert outcome(recognizer_group(["joy", "joy", "anger"], None, turn=1)) == [(False, "not read")]


def test_a_real_turn_without_annotation_is_kept_with_its_consensus_if_nobody_else_taught_it() -> None:
    group = recognizer_group(["joy", "joy", "anger"], None, turn=0)
    assert outcome(group) == [(True, "consensus")]
    assert outcome(replace(group, taught=("joy",))) == [(False, "taught")]
    assert outcome(replace(group, parent=4)) == [(False, "not read")], "a turn that the model wrote"
    assert outcome(recognizer_group(["", ""], None, turn=0)) == [(False, "no answer")]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(LABELS), max_size=60), st.floats(0, 0.2))
def test_no_label_ever_exceeds_its_share_of_what_passed(stream: list[str], floor: float) -> None:
    shares = {"anger": 0.1, "joy": 0.3, "neutral": 0.6, "sadness": 0.0}
    kept: dict[str, int] = dict.fromkeys(LABELS, 0)
    for passed, label in enumerate(stream):
        kept[label] += within_cap(label, kept[label], passed, shares, floor)
    for label, count in kept.items():
        assert count < max(shares[label], floor) * len(stream) + 1
    assert kept["sadness"] == 0


def test_the_cap_does_not_starve_when_a_label_is_missing() -> None:
    """Select from a stream without anger.

    If caps were relative to the kept records, it would stop at a handful.
    """
    shares, kept = {"anger": 0.1, "joy": 0.3, "neutral": 0.6}, {"joy": 0, "neutral": 0}
    for passed in range(1000):
        label = "neutral" if passed % 10 < 8 else "joy"
        kept[label] += within_cap(label, kept[label], passed, shares, 0.0)
    assert kept["neutral"] == pytest.approx(600, abs=2)
    assert kept["joy"] == 200


sentences = st.lists(st.sampled_from([f"w{i}" for i in range(12)]), max_size=8).map(" ".join)


@settings(max_examples=200)
@given(st.lists(sentences, max_size=12), sentences, st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]))
def test_near_duplicates_are_exactly_those_of_the_definition(
    added: list[str], text: str, threshold: float
) -> None:
    index = NearDuplicates(threshold, known_texts=["w0 w1 w2", "w0 w1", "w0"])
    for other in added:
        index.add(other)

    def jaccard(a: set[str], b: set[str]) -> float:
        return len(a & b) / len(a | b) if a | b else 1.0

    assert index.holds(text) == any(
        jaccard(set(words(text)), set(words(other))) >= threshold - 1e-9 for other in added
    )
    assert len(index) <= len(added)
