"""Test that an evaluation prints every figure of a large label set, however narrow the terminal is."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from selfemo.evaluation.metrics import NO_ANSWER, classify
from selfemo.evaluation.tables import confusion_table

EMOTIONS = tuple(
    sorted(f"{stem}{ending}" for stem in "abcdefg" for ending in ("n", "nger", "pproval", "ness"))
)


def printed(width: int, labels: tuple[str, ...]) -> tuple[str, list[int]]:
    """Print the matrix of random answers; returns the text, and the counts that it must show."""
    rng = random.Random(7)
    gold = [rng.choice(labels) for _ in range(90_000)]
    figures = classify(gold, [rng.choice([label, label, *labels, NO_ANSWER]) for label in gold], labels)
    output = io.StringIO()
    console = Console(file=output, width=width, highlight=False)
    console.print(confusion_table("model", figures))
    return output.getvalue(), [count for row in figures.confusion for count in row]


@pytest.mark.parametrize("width", [40, 80, 110, 400])
@pytest.mark.parametrize("labels", [EMOTIONS, EMOTIONS[:7]])
def test_a_confusion_matrix_shows_every_count(width: int, labels: tuple[str, ...]) -> None:
    text, counts = printed(width, labels)
    lines = text.splitlines()
    assert "\u2026" not in text
    assert max(map(len, lines)) <= width
    shown = [int(word) for line in lines for word in line.split()[1:] if line.split()[0] in labels]
    assert sorted(shown) == sorted(counts)


def test_a_part_of_a_matrix_fills_the_terminal() -> None:
    text, _ = printed(110, EMOTIONS)
    assert sum(EMOTIONS[0] in line.split()[:1] for line in text.splitlines()) == 3
