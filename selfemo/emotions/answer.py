"""The recognizer's answer: a strict grammar, read and written in one place.

    answer = label { ", " label }        one line, 1 to 3 distinct labels of the closed set, the first one primary

Nothing around it is tolerated, neither a full stop nor a blank nor a capital: reward and metrics rest on what is read here, and a
lenient reader would pay for text that only resembles an answer. Where thinking is on, one closed block `<think>...</think>`
may precede the answer. What does not parse becomes a FormatFailure, which scores exactly 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

MAX_LABELS = 3
SEPARATOR = ", "
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

FailureReason = Literal[
    "empty", "cut", "thinking", "several lines", "unknown label", "repeated label", "too many labels"
]


@dataclass(frozen=True)
class Answer:
    """An answer in the grammar."""

    labels: tuple[str, ...]
    """1 to 3 distinct labels, primary first."""

    @property
    def primary(self) -> str:
        """The label that accuracy and F1 are computed on."""
        return self.labels[0]


@dataclass(frozen=True)
class FormatFailure:
    """A completion outside the grammar."""

    reason: FailureReason
    detail: str = ""
    """The offending piece of text, cut to 40 characters."""


type Reading = Answer | FormatFailure
"""What a completion turned out to be."""


def parse_answer(
    text: str, labels: Collection[str], *, thinking: bool = False, finished: bool = True
) -> Reading:
    """Read a completion.

    Args:
        text: the decoded completion without its end-of-turn token.
        labels: the closed label set.
        thinking: allow one thinking block, and blanks before and after it, before the answer.
        finished: False when the length cap cut the completion: an answer that did not end by itself is not one.
    """
    if not finished:
        return FormatFailure("cut", text[-40:])
    if thinking:
        stripped = _after_thinking(text)
        if stripped is None:
            return FormatFailure("thinking", text[:40])
        text = stripped
    if not text:
        return FormatFailure("empty")
    if len(text.splitlines()) > 1:
        return FormatFailure("several lines", text[:40])
    parts = text.split(SEPARATOR)
    for index, part in enumerate(parts):
        if part not in labels:
            return FormatFailure("unknown label", part[:40])
        if part in parts[:index]:
            return FormatFailure("repeated label", part[:40])
    if len(parts) > MAX_LABELS:
        return FormatFailure("too many labels", text[:40])
    return Answer(tuple(parts))


def _after_thinking(text: str) -> str | None:
    """What follows the thinking block; the text itself where it has none; None where the block is not closed."""
    body = text.lstrip()
    if not body.startswith(THINK_OPEN):
        return text
    _, closed, rest = body[len(THINK_OPEN) :].partition(THINK_CLOSE)
    return rest.lstrip() if closed else None


def format_answer(labels: Sequence[str]) -> str:
    """The answer text for 1 to 3 distinct labels, primary first; `parse_answer` reads it back.

    Raises:
        ValueError: no label, more than 3, or a repeated one.
    """
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"labels has {len(labels)} entries, expected 1 to {MAX_LABELS}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels {list(labels)} repeat an entry")
    return SEPARATOR.join(labels)
