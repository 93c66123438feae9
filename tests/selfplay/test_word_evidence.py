"""Test what the words of a line say of its label, against naive Bayes in fractions, and its say in a vote."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.corpora.words import words_and_marks
from selfemo.selfplay.teacher import read_turns
from selfemo.selfplay.word_evidence import PSEUDO_COUNT, WordEvidence, weigh_in
from tests.helpers.scripted import LABELS, conversation
from tests.selfplay.test_teacher import CONFIG, SureOf, parts

SHOWN = [
    conversation("a", "Ann[joy]: Great! Great! That is great.", "Bo[anger]: No. That is awful"),
    conversation("b", "Ann[joy, anger]: That!", "Bo: great awful words that nobody labelled"),
]
LINE = "That is GREAT, great news!"
SHARES = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(any)


def _bayes(line: str) -> dict[str, float]:
    """Compute P(label | line) from scratch: words, marks and neighbours, each once a turn."""

    def units(text: str) -> set[str]:
        found = words_and_marks(text)
        return {*found, *map(" ".join, pairwise(found))}

    turns = [
        (units(turn.text), label, Fraction(1, len(turn.labels)))
        for shown in SHOWN
        for turn in shown.turns
        for label in turn.labels
    ]
    known = sorted(set().union(*(found for found, _, _ in turns)))
    prior, counts = Counter[str](), {"joy": Counter[str](), "anger": Counter[str]()}
    for found, label, part in turns:
        prior[label] += part  # type: ignore[assignment]
        for unit in found:
            counts[label][unit] += part  # type: ignore[assignment]
    scores = {}
    for label, count in counts.items():
        mass = float(sum(count.values())) + PSEUDO_COUNT * len(known)
        told = [float(count[unit] + PSEUDO_COUNT) / mass for unit in units(line) if unit in known]
        scores[label] = log(float(prior[label]) / 3) + sum(map(log, told))
    total = sum(map(exp, scores.values()))
    return {label: exp(score) / total for label, score in scores.items()}


@pytest.mark.parametrize("line", [LINE, "no", "nothing of this was seen", "", "is awful is awful"])
def test_evidence_is_that_of_naive_bayes(line: str) -> None:
    found = WordEvidence.count(SHOWN, LABELS).log_shares(line)
    assert list(found) == ["anger", "joy"]
    assert {label: exp(value) for label, value in found.items()} == pytest.approx(_bayes(line), rel=1e-12)


def test_turns_without_labels_and_their_words_are_not_counted() -> None:
    more = [*SHOWN, conversation("c", "Ann: great news, is it not?", "Bo: awful awful news")]
    assert WordEvidence.count(more, LABELS).log_shares(LINE) == WordEvidence.count(SHOWN, LABELS).log_shares(
        LINE
    )


@pytest.mark.parametrize("lines", [("Ann: that", "Bo: this"), ("Ann[joy]:  ", "Bo: this")])
def test_a_split_without_a_labelled_word_is_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"teacher_words counts the words .* set selfplay.teacher_words=0"):
        WordEvidence.count([conversation("a", *lines)], LABELS)


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
    words = WordEvidence.count(shown, LABELS)
    alone = read_turns(replace(play, generator=sure, config=config), openings, 0)
    both = read_turns(replace(play, generator=sure, config=config, words=words), openings, 0)
    assert {group.consensus.labels[0] for group in alone} == {"joy"}
    assert {(g.context[-1].text[-3:], g.consensus.labels[0]) for g in both} == {
        ("one", "joy"),
        ("two", "anger"),
    }
