"""Test the parser on damaged answers: it accepts exactly the canonical texts, and never raises.

`make test` tries ten thousand, `make fuzz` a hundred thousand.
"""

from __future__ import annotations

import os
import random

from selfemo.emotions.answer import MAX_LABELS, THINK_CLOSE, THINK_OPEN, Answer, format_answer, parse_answer
from tests.helpers.label_sets import MELD_LABELS

INPUTS = int(os.environ.get("FUZZ_INPUTS") or 10_000)
SEED = random.SystemRandom().getrandbits(64) if "FUZZ_INPUTS" in os.environ else 20260418
"""Fixed in `make test`, drawn anew in `make fuzz`; a failure prints it."""
NOISE = [
    *" ,.\n\r\t\x00\x0b\x85\u2028\u00a0\u200b\ufeff|<>/'\"",
    "joy",
    "Joy",
    "ｊｏｙ",
    ", ",
    ",",
    "and ",
    "<|im_end|>",
    THINK_OPEN,
    THINK_CLOSE,
    "😀",
    "\ud800",
]


def damaged(rng: random.Random) -> str:
    """Make an answer with up to three insertions, deletions or swaps; one answer in four stays whole."""
    text = ", ".join(rng.choices(MELD_LABELS, k=rng.randint(0, 4)))
    for _ in range(rng.randint(0, 3)):
        at = rng.randint(0, len(text))
        text = rng.choice(
            [text[:at] + rng.choice(NOISE) + text[at:], text[:at] + text[at + 1 :], text[at:] + text[:at]]
        )
    return text


def check(text: str) -> bool:
    """Parse a text; returns whether it was accepted, after comparing that with whether it is canonical."""
    reading = parse_answer(text, MELD_LABELS)
    parts = text.split(", ")
    canonical = set(parts) <= set(MELD_LABELS) and len(set(parts)) == len(parts) <= MAX_LABELS
    assert isinstance(reading, Answer) == canonical
    if isinstance(reading, Answer):
        assert format_answer(reading.labels) == text
        assert (
            parse_answer(f"{THINK_OPEN}{text}{THINK_CLOSE}\n\n{text}", MELD_LABELS, thinking=True) == reading
        )
    assert parse_answer(text, MELD_LABELS, finished=False) != reading or not isinstance(reading, Answer)
    parse_answer(text, MELD_LABELS, thinking=True)
    return canonical


def test_what_is_accepted_is_canonical_and_all_that_is_canonical_is_accepted() -> None:
    rng = random.Random(SEED)
    accepted = 0
    for number in range(INPUTS):
        text = damaged(rng)
        try:
            accepted += check(text)
        except BaseException as error:
            error.add_note(f"seed {SEED}, input {number}: {text!r}")
            raise
    assert INPUTS // 10 < accepted < INPUTS // 2, f"seed {SEED}: the fuzzer must reach both sides"
