"""Test what the words of a line say of its label, against a regression in fp64, and its say in a vote."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from selfemo.common.errors import UserError
from selfemo.corpora.words import words_and_marks
from selfemo.selfplay.teacher import read_turns
from selfemo.selfplay.word_evidence import INVERSE_PENALTY, WordEvidence, weigh_in
from tests.helpers.scripted import LABELS, conversation
from tests.selfplay.test_teacher import CONFIG, SureOf, parts

SHOWN = [
    conversation("a", "Ann[joy]: Great! Great! That is great.", "Bo[anger]: No. That is awful"),
    conversation("b", "Ann[joy, anger]: That!", "Bo: great awful words that nobody labelled"),
    conversation("c", "Ann[sadness]: Oh. It is awful, is it"),
]
LINE = "That is GREAT, great news!"
SHARES = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(any)


def _regression(lines: list[str]) -> list[dict[str, float]]:
    """Compute P(label | line) of each line by minimising the documented loss, in fp64."""

    def units(text: str) -> list[str]:
        found = words_and_marks(text)
        return [*found, *map(" ".join, pairwise(found))]

    turns = [turn for shown in SHOWN for turn in shown.turns if turn.labels]
    holders = Counter(unit for turn in turns for unit in set(units(turn.text)))
    known = sorted(holders)

    def vector(text: str) -> np.ndarray:
        counts = Counter(units(text))
        rarity = [1 + log((1 + len(turns)) / (1 + holders[unit])) for unit in known]
        row = np.array([(1 + log(counts[u])) * idf if counts[u] else 0 for u, idf in zip(known, rarity)])
        return row / max(1e-30, np.linalg.norm(row))

    order = [label for label in LABELS if any(label in turn.labels for turn in turns)]
    rows = np.stack([vector(turn.text) for turn in turns])
    shares = np.array([[(label in turn.labels) / len(turn.labels) for label in order] for turn in turns])

    def split(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: len(order)], flat[len(order) :].reshape(len(known), len(order))

    def loss(flat: np.ndarray) -> float:
        bias, weights = split(flat)
        entropy = -(shares * log_softmax(rows @ weights + bias, axis=1)).sum()
        return float(INVERSE_PENALTY * entropy + (weights**2).sum() / 2)

    start = np.zeros(len(order) * (1 + len(known)))
    bias, weights = split(minimize(loss, start, options={"gtol": 1e-6}).x)
    told = [np.exp(log_softmax(vector(line) @ weights + bias)) for line in lines]
    return [dict(zip(order, map(float, row))) for row in told]


def test_evidence_is_that_of_a_penalised_regression_on_tf_idf() -> None:
    lines = [LINE, "no", "nothing of this was seen", "", "is awful is awful"]
    evidence = WordEvidence.fit(SHOWN, LABELS)
    for line, wanted in zip(lines, _regression(lines), strict=True):
        found = evidence.log_shares(line)
        assert list(found) == list(wanted) == [label for label in LABELS if label in wanted]
        assert {label: exp(value) for label, value in found.items()} == pytest.approx(wanted, abs=2e-5)


def test_turns_without_labels_and_their_words_are_not_counted() -> None:
    more = [*SHOWN, conversation("c", "Ann: great news, is it not?", "Bo: awful awful news")]
    assert WordEvidence.fit(more, LABELS).log_shares(LINE) == WordEvidence.fit(SHOWN, LABELS).log_shares(LINE)


@pytest.mark.parametrize("lines", [("Ann: that", "Bo: this"), ("Ann[joy]:  ", "Bo: this")])
def test_a_split_without_a_labelled_word_is_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"teacher_words reads the words .* set selfplay.teacher_words=0"):
        WordEvidence.fit([conversation("a", *lines)], LABELS)


def test_labelled_turns_of_one_label_are_refused() -> None:
    with pytest.raises(UserError, match=r"every labelled turn of the training split is joy; label more"):
        WordEvidence.fit([conversation("a", "Ann[joy]: that", "Bo[joy]: this")], LABELS)


@settings(max_examples=80)
@given(SHARES, st.floats(0, 3), st.dictionaries(st.sampled_from(LABELS), st.floats(-900, 0), min_size=1))
def test_weighed_shares_are_a_distribution_in_falling_order(
    shares: list[float], weight: float, evidence: dict[str, float]
) -> None:
    found = weigh_in(tuple(zip(LABELS, shares)), evidence, weight)
    assert sorted(label for label, _ in found) == sorted(LABELS)
    assert sum(share for _, share in found) == pytest.approx(1)
    assert all(a[1] >= b[1] for a, b in pairwise(found))


@given(SHARES)
def test_weight_0_changes_no_share_and_weight_1_is_bayes_rule(shares: list[float]) -> None:
    own = {label: share / sum(shares) for label, share in zip(LABELS, shares)}
    evidence = dict(zip(LABELS, map(log, (0.1, 0.2, 0.3, 0.4))))
    assert dict(weigh_in(tuple(own.items()), evidence, 0)) == pytest.approx(own, abs=1e-12)
    joint = {label: own[label] * exp(evidence[label]) for label in LABELS}
    bayes = {label: value / sum(joint.values()) for label, value in joint.items()}
    assert dict(weigh_in(tuple(own.items()), evidence, 1)) == pytest.approx(bayes, abs=1e-12)


def test_a_label_that_no_turn_has_is_weighed_like_the_least_likely() -> None:
    found = dict(
        weigh_in((("joy", 0.5), ("anger", 0.25), ("sadness", 0.25)), {"joy": 0, "anger": log(0.5)}, 1)
    )
    assert found == pytest.approx({"joy": 2 / 3, "anger": 1 / 6, "sadness": 1 / 6})


def test_words_have_a_say_in_the_teachers_vote() -> None:
    play, pool, _ = parts()
    openings = pool.unlabelled(range(1), 0)
    sure = SureOf(lambda prompt: dict(zip(LABELS, (0.3, 0.4, 0.2, 0.1), strict=True)))
    config = replace(CONFIG, teacher_votes="probabilities", teacher_words=1.0)
    shown = [conversation("w", "Ann[anger]: two", "Ann[anger]: two", "Bo[joy]: one", "Bo[joy]: one")]
    words = WordEvidence.fit(shown, LABELS)
    alone = read_turns(replace(play, generator=sure, config=config), openings, 0)
    both = read_turns(replace(play, generator=sure, config=config, words=words), openings, 0)
    assert {group.consensus.labels[0] for group in alone} == {"joy"}
    assert {(g.context[-1].text[-3:], g.consensus.labels[0]) for g in both} == {
        ("one", "joy"),
        ("two", "anger"),
    }
