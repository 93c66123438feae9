"""Test the invariants of the smoothed IoU for the identity, the circumplex and any admissible matrix."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.emotions.affinity import (
    MAX_AFFINITY,
    Affinity,
    build_affinity,
    circumplex_affinity,
    identity_affinity,
)
from selfemo.emotions.answer import Answer, FormatFailure
from selfemo.emotions.similarity import SmoothedIoU, best_matching
from tests.helpers.label_sets import EVERY_CORPUS, MELD_LABELS

LABELS = MELD_LABELS
PAIRS = [(i, j) for i in range(len(LABELS)) for j in range(i)]


def symmetric(values: list[float]) -> Affinity:
    rows = [[float(i == j) for j in range(len(LABELS))] for i in range(len(LABELS))]
    for (i, j), value in zip(PAIRS, values, strict=True):
        rows[i][j] = rows[j][i] = value
    return Affinity(LABELS, tuple(tuple(row) for row in rows))


entries = st.floats(0, MAX_AFFINITY) | st.sampled_from([0.0, MAX_AFFINITY])
affinities = (
    st.just(identity_affinity(LABELS))
    | st.just(circumplex_affinity(LABELS))
    | st.lists(entries, min_size=len(PAIRS), max_size=len(PAIRS)).map(symmetric)
)
scorers = st.builds(SmoothedIoU, affinities, st.floats(0, 0.1))
label_sets = st.sets(st.sampled_from(LABELS), min_size=1, max_size=4)


@given(scorers, label_sets, label_sets)
def test_symmetric_and_within_zero_and_one(score: SmoothedIoU, p: set[str], y: set[str]) -> None:
    assert score(p, y) == score(y, p)
    assert 0.0 <= score(p, y) <= 1.0


@given(scorers, label_sets, label_sets)
def test_one_exactly_for_equal_sets(score: SmoothedIoU, p: set[str], y: set[str]) -> None:
    assert (score(p, y) == 1.0) == (p == y)


@given(scorers, label_sets, label_sets, st.sampled_from(LABELS))
def test_a_wrong_label_never_raises_it(score: SmoothedIoU, p: set[str], y: set[str], label: str) -> None:
    index = LABELS.index(label)
    if label not in p and all(score.affinity.matrix[index][LABELS.index(gold)] == 0 for gold in y):
        assert score(p | {label}, y) <= score(p, y)


@settings(max_examples=300)
@given(scorers, label_sets, label_sets)
def test_a_right_label_never_lowers_it(score: SmoothedIoU, p: set[str], y: set[str]) -> None:
    for label in y - p:
        assert score(p | {label}, y) >= score(p, y) - 1e-12


@given(label_sets, label_sets)
def test_identity_without_smoothing_is_the_iou(p: set[str], y: set[str]) -> None:
    assert SmoothedIoU(identity_affinity(LABELS), 0.0)(p, y) == len(p & y) / len(p | y)


@given(affinities, label_sets, label_sets)
def test_the_matching_is_the_best_of_all(affinity: Affinity, p: set[str], y: set[str]) -> None:
    rows, columns = [LABELS.index(x) for x in p], [LABELS.index(x) for x in y]
    short, long = sorted((rows, columns), key=len)
    brute = max(
        sum(affinity.matrix[i][j] for i, j in zip(short, order)) for order in permutations(long, len(short))
    )
    assert best_matching(affinity.matrix, rows, columns) == pytest.approx(brute)


def test_worked_examples() -> None:
    score = SmoothedIoU(identity_affinity(LABELS), 0.05)
    assert score(["joy"], ["joy", "surprise"]) == pytest.approx(1.05 / 2.05)
    assert score(["joy"], ["anger"]) == pytest.approx(0.05 / 2.05)
    assert score(["joy", "fear"], ["anger"]) < score(["joy"], ["anger"]), "a longer wrong answer earns less"


def test_a_format_failure_is_exactly_zero_however_large_e_is() -> None:
    score = SmoothedIoU(identity_affinity(LABELS), 0.1)
    joy, failure = Answer(("joy",)), FormatFailure("empty")
    assert score.of_reading(failure, ["joy"]) == 0.0
    assert score.mean_pairwise([joy, joy, failure]) == pytest.approx(1 / 3)
    assert score.mean_pairwise([failure]) == 0.0
    assert score.mean_pairwise([joy]) == 1.0


@pytest.mark.parametrize(("p", "y"), [([], ["joy"]), (["joy"], []), (["joy"], ["happiness"])])
def test_what_has_no_score_is_an_error(p: list[str], y: list[str]) -> None:
    with pytest.raises(ValueError, match=r"predicted|reference"):
        SmoothedIoU(identity_affinity(LABELS), 0.0)(p, y)


def test_smoothing_stays_small() -> None:
    with pytest.raises(ValueError, match="smoothing"):
        SmoothedIoU(identity_affinity(LABELS), 0.2)


@pytest.mark.parametrize("labels", EVERY_CORPUS)
def test_the_circumplex_covers_every_corpus(labels: tuple[str, ...]) -> None:
    affinity = circumplex_affinity(labels)
    neutral = labels.index("neutral")
    assert sum(affinity.matrix[neutral]) == 1.0, "neutral is at the centre, like nothing else"


def test_the_circumplex_ranks_neighbours_as_people_do() -> None:
    matrix = circumplex_affinity(LABELS).matrix

    def near(a: str, b: str) -> float:
        return matrix[LABELS.index(a)][LABELS.index(b)]

    assert near("anger", "disgust") > near("anger", "joy") == 0.0
    assert near("anger", "fear") > near("surprise", "sadness") == 0.0


def test_a_label_without_a_place_names_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"'surprize' has no place.*did you mean 'surprise'.*reward\.affinity=identity"
    ):
        build_affinity("circumplex", ("joy", "surprize"))
    with pytest.raises(ValueError, match="affinity"):
        build_affinity("cosine", LABELS)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (((1.0, 0.6), (0.6, 1.0)), r"matrix\[0\]\[1\] is 0.6"),
        (((1.0, 0.1), (0.2, 1.0)), "differs"),
        (((0.9, 0.0), (0.0, 1.0)), r"matrix\[0\]\[0\]"),
        (((1.0,), (1.0,)), "not 2 x 2"),
    ],
)
def test_inadmissible_matrices_are_refused(matrix: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Affinity(("joy", "fear"), matrix)
