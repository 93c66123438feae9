"""Test the vote of a group, and the prior from which targets are drawn."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.emotions.affinity import identity_affinity
from selfemo.emotions.answer import Answer, FormatFailure, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.transitions import TransitionPrior
from tests.helpers.scripted import LABELS, conversation

SCORE = SmoothedIoU(identity_affinity(LABELS), 0.0)
FAILURE = FormatFailure("empty")
readings = st.lists(
    st.lists(st.sampled_from(LABELS), min_size=1, max_size=3, unique=True).map(lambda x: Answer(tuple(x)))
    | st.just(FAILURE),
    max_size=8,
)


def answers(*texts: str) -> list[Reading]:
    return [Answer(tuple(text.split(", "))) if text else FAILURE for text in texts]


@pytest.mark.parametrize(
    ("texts", "winners"),
    [
        (("joy", "joy", "anger"), ("joy",)),
        (("joy, anger", "anger, joy", "joy"), ("joy", "anger")),
        (("joy", "anger"), ("anger",)),
        (("sadness, joy", "joy, neutral", "anger"), ("joy",)),
        (("joy", "", "", ""), ("joy",)),
        (("", ""), ()),
    ],
)
def test_votes_by_hand(texts: tuple[str, ...], winners: tuple[str, ...]) -> None:
    assert vote(answers(*texts), SCORE).labels == winners


@given(readings, st.randoms(use_true_random=False))
def test_the_vote_does_not_depend_on_the_order_of_samples(group: list[Reading], rng: random.Random) -> None:
    shuffled = list(group)
    rng.shuffle(shuffled)
    first, second = vote(group, SCORE), vote(shuffled, SCORE)
    assert (first.labels, first.votes) == (second.labels, second.votes)
    assert first.agreement == pytest.approx(second.agreement)
    assert len(first.labels) <= 3
    assert bool(first.labels) == any(isinstance(r, Answer) for r in group)


TRAIN = [
    conversation("1", "A[joy]: x", "B[joy]: x", "A[joy]: x", "B[anger, sadness]: x"),
    conversation("2", "A[anger]: x", "B: x", "A[joy]: x"),
]


def test_transitions_are_counted_within_dialogues_and_rows_are_distributions() -> None:
    prior = TransitionPrior.estimate(TRAIN)
    assert prior.sets == (("anger", "sadness"), ("joy",))
    assert [label for label, _ in prior.rows] == ["joy"], "an unannotated turn ends a chain"
    for _, row in prior.rows:
        assert sum(row) == pytest.approx(1.0)
    assert prior.probabilities("anger") == prior.marginal == pytest.approx((1 / 3, 2 / 3))
    assert prior.probabilities(None) == prior.marginal


def test_draws_follow_the_prior_and_flattening_evens_them() -> None:
    prior = TransitionPrior.estimate([conversation("1", *["A[joy]: x"] * 90, "A[anger]: x")])
    rng = random.Random(3)
    plain = Counter(prior.draw("joy", rng)[0] for _ in range(2000))
    flat = Counter(prior.draw("joy", rng, flattening=1.0)[0] for _ in range(2000))
    assert plain["anger"] < 60
    assert 900 < flat["anger"] < 1100


def test_without_transitions_there_is_nothing_to_draw() -> None:
    assert TransitionPrior.estimate([conversation("1", "A[joy]: x", "B: y")]).sets == ()
