"""Test rewards: components by hand and by property, gates, label weights, and the report of a group."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config.schema import RewardConfig
from selfemo.emotions.answer import Answer, FormatFailure
from selfemo.rewards.components import alignment, consistencies, consistency_gate, expression
from selfemo.rewards.frequency import frequency_weights, label_shares
from selfemo.rewards.scoring import Rewards, score_group
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.records import Group
from tests.helpers.groups import SCORE, reading, recognizer_group, responder_group
from tests.helpers.scripted import LABELS, conversation

CONFIG = RewardConfig()
ONES = dict.fromkeys(LABELS, 1.0)
label_sets = st.lists(st.sampled_from(LABELS), min_size=1, max_size=3, unique=True).map(tuple)
readings = st.lists(label_sets.map(Answer) | st.just(FormatFailure("empty")), min_size=2, max_size=8)


def test_an_annotated_group_by_hand() -> None:
    scored = score_group(recognizer_group(["joy", "joy", "anger", ""], ("joy",)), CONFIG, SCORE, ONES)
    near = 0.05 / 2.05
    assert scored.component("alignment") == pytest.approx((1, 1, near, 0))
    assert scored.component("consistency") == pytest.approx(((1 + near) / 3, (1 + near) / 3, 2 * near / 3, 0))
    assert scored.component("format") == (1, 1, 1, 0)
    assert scored.totals[0] == pytest.approx(1 + 0.2 * (1 + near) / 3 + 0.1)
    assert scored.totals[3] == 0
    assert scored.alignment_range == 1
    assert scored.best == 0


@given(readings)
def test_mean_consistency_is_the_groups_agreement(group: list) -> None:
    mean = sum(consistencies(group, SCORE)) / len(group)
    assert mean == pytest.approx(vote(group, SCORE).agreement)


@given(readings, st.sampled_from([*LABELS, None]))
def test_components_stay_within_zero_and_one_and_failures_earn_nothing(group: list, gold: str | None) -> None:
    texts = [", ".join(r.labels) if isinstance(r, Answer) else "" for r in group]
    scored = score_group(recognizer_group(texts, (gold,) if gold else None), CONFIG, SCORE, ONES)
    for r, row, score in zip(group, scored.rewards, scored.scores, strict=True):
        assert all(0 <= value <= 1 for value in (*row, score))
        if isinstance(r, FormatFailure):
            assert row == (0, 0, 0)


@given(readings, st.randoms(use_true_random=False), st.sampled_from([*LABELS, None]))
def test_rewards_belong_to_samples_and_not_to_places(
    group: list, rng: random.Random, gold: str | None
) -> None:
    texts = [", ".join(r.labels) if isinstance(r, Answer) else "" for r in group]
    order = rng.sample(range(len(texts)), len(texts))
    target = (gold,) if gold else None
    before, after = (
        score_group(recognizer_group(t, target), CONFIG, SCORE, ONES)
        for t in (texts, [texts[i] for i in order])
    )
    assert after.gate is before.gate
    for place, source in enumerate(order):
        assert after.rewards[place] == pytest.approx(before.rewards[source])


@given(readings, label_sets)
def test_alignment_is_full_for_the_reference_alone(group: list, gold: tuple[str, ...]) -> None:
    for r in group:
        full = isinstance(r, Answer) and set(r.labels) == set(gold)
        assert (alignment(r, gold, SCORE) == 1.0) is full
        assert expression(r, gold, SCORE) == alignment(r, gold, SCORE), "one measure for both tasks"
    assert expression(None, gold, SCORE) == 0.0, "behind a failed gate"
    assert alignment(group[0], (), SCORE) == 0.0, "without a reference"


@given(readings)
def test_consistency_is_full_for_unanimous_groups_alone(group: list) -> None:
    sets = [frozenset(r.labels) if isinstance(r, Answer) else None for r in group]
    for i in range(len(group)):
        unanimous = sets[i] is not None and set(sets) == {sets[i]}
        assert (consistencies(group, SCORE)[i] == pytest.approx(1.0)) is unanimous
    assert consistencies(group[:1], SCORE) == (0.0,), "a lone sample agrees with nobody"


@given(readings, label_sets, st.floats(0, 1), st.floats(0, 1))
def test_the_gate_of_an_annotated_group_asks_for_its_gold_and_of_others_for_the_band(
    group: list, gold: tuple[str, ...], low: float, high: float
) -> None:
    consensus = vote(group, SCORE)
    right = bool(consensus.labels) and consensus.labels[0] in gold
    assert consistency_gate(consensus, gold, low, high) is right, "whatever the band"
    inside = bool(consensus.labels) and low <= consensus.agreement <= high
    assert consistency_gate(consensus, None, low, high) is inside


@given(readings)
def test_identical_samples_carry_no_ranking(group: list) -> None:
    text = ", ".join(group[0].labels) if isinstance(group[0], Answer) else ""
    scored = score_group(recognizer_group([text] * 5, None), CONFIG, SCORE, ONES)
    assert scored.alignment_range == 0
    assert len(set(scored.totals)) == 1


@pytest.mark.parametrize(
    ("answers", "gold", "open_"),
    [
        (["joy", "joy", "anger"], ("joy",), True),
        (["joy", "joy", "anger"], ("anger",), False),
        (["neutral"] * 3, ("joy",), False),
        (["", "", ""], ("joy",), False),
        (["joy"] * 4, None, False),
        (["joy", "joy", "joy", "anger"], None, True),
        (["joy", "anger", "neutral", "sadness"], None, False),
    ],
)
def test_agreement_is_paid_only_where_it_means_something(
    answers: list[str], gold: tuple[str, ...] | None, open_: bool
) -> None:
    consensus = vote([reading(text) for text in answers], SCORE)
    assert consistency_gate(consensus, gold, 0.5, 0.95) is open_
    scored = score_group(recognizer_group(answers, gold), CONFIG, SCORE, ONES)
    assert scored.gate is open_
    assert open_ == any(scored.component("consistency"))


def test_a_taught_group_is_paid_for_agreeing_on_what_it_is_taught_alone() -> None:
    group = recognizer_group(["neutral", "neutral", "neutral", "joy"], None)
    for taught, open_ in ((None, True), (("neutral",), True), (("joy",), False)):
        scored = score_group(replace(group, taught=taught), CONFIG, SCORE, ONES)
        assert scored.gate is open_
        assert any(scored.component("consistency")) is open_


def test_collapsing_to_the_majority_label_pays_only_without_the_gate() -> None:
    """Show the incentive that the gate removes.

    On a sad turn, if everyone says neutral, that beats disagreeing.
    """
    collapsed, mixed = (
        recognizer_group(["neutral"] * 4, ("sadness",)),
        recognizer_group(["neutral", "sadness", "joy", "anger"], ("sadness",)),
    )
    ungated = replace(CONFIG, consistency_gate=False)

    def bonus(group: Group, config: RewardConfig) -> float:
        return sum(score_group(group, config, SCORE, ONES).component("consistency"))

    assert bonus(collapsed, ungated) > bonus(mixed, ungated)
    assert bonus(collapsed, CONFIG) == 0


def test_without_annotation_the_consensus_is_the_reference() -> None:
    scored = score_group(recognizer_group(["joy", "joy", "anger"], None, turn=1), CONFIG, SCORE, ONES)
    assert scored.scores == pytest.approx((1, 1, 0.05 / 2.05))
    failed = score_group(recognizer_group(["", ""], None, turn=1), CONFIG, SCORE, ONES)
    assert failed.totals == (0, 0)


def test_a_responder_group_by_hand() -> None:
    group = responder_group(
        [("grand", "joy"), ("so so", "neutral"), ("what joy", None), ("hm hm", "")], ("joy",)
    )
    scored = score_group(group, CONFIG, SCORE, ONES)
    assert scored.component("expression") == pytest.approx((1, 0.05 / 2.05, 0, 0))
    assert scored.component("format") == (1, 1, 0, 1)
    assert scored.best == 0
    with pytest.raises(ValueError):
        scored.component("alignment")


@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=8).filter(any),
    st.floats(0, 1),
    st.floats(1, 10),
)
def test_label_weights_average_one_stay_under_the_cap_and_favour_the_rare(
    counts: list[int], exponent: float, cap: float
) -> None:
    shares = {str(i): count / sum(counts) for i, count in enumerate(counts)}
    weights = frequency_weights(shares, exponent, cap)
    assert sum(weights[label] * share for label, share in shares.items()) == pytest.approx(1.0)
    assert max(weights.values()) <= cap * (1 + 1e-9) or exponent == 0
    ordered = sorted((label for label in shares if shares[label] > 0), key=lambda label: shares[label])
    assert all(weights[a] >= weights[b] - 1e-12 for a, b in itertools.pairwise(ordered))


def test_frequency_weight_scales_alignment_but_not_the_ranking_score() -> None:
    train = [conversation("1", *["A[neutral]: x"] * 9, "A[joy]: x")]
    rewards = Rewards(replace(CONFIG, frequency_exponent=1.0, frequency_cap=3.0), train, LABELS)
    assert rewards.label_shares == pytest.approx({"anger": 0, "joy": 0.1, "neutral": 0.9, "sadness": 0})
    assert rewards.label_weights["joy"] == pytest.approx(3.0)
    assert rewards.label_weights["neutral"] == pytest.approx((1 - 0.3) / 0.9)
    scored, unannotated = rewards.score_groups(
        [recognizer_group(["joy", "anger"], gold) for gold in (("joy",), None)]
    )
    assert scored.component("alignment")[0] == pytest.approx(3.0)
    assert scored.scores[0] == 1.0
    assert unannotated.frequency_weight == 1.0


def test_weights_need_a_cap_of_one_and_survive_an_unannotated_split() -> None:
    with pytest.raises(ValueError, match="cap"):
        frequency_weights({"joy": 1.0}, 0.5, 0.5)
    assert label_shares([], LABELS) == dict.fromkeys(LABELS, 0.0)
    assert frequency_weights(label_shares([], LABELS), 1.0, 4.0) == ONES
