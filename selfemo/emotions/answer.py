"""Read and write the recognizer's answer, whose strict grammar is defined here alone.

    answer = label { ", " label }        one line, 1 to 3 distinct labels of the closed set, primary first

Nothing else is tolerated, neither a full stop nor a blank nor a capital. Reward and metrics rest on
the labels read here, and a lenient reader would pay for text that only resembles an answer. If
thinking is on, one closed block `<think>...</think>` may precede the answer. Any other completion
becomes a FormatFailure, which scores exactly 0 everywhere.
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
    """A completion outside the grammar, and the reason."""

    reason: FailureReason
    detail: str = ""
    """The offending piece of text, cut to 40 characters."""


type Reading = Answer | FormatFailure
"""Result of reading a completion."""


def parse_answer(
    text: str, labels: Collection[str], *, thinking: bool = False, finished: bool = True
) -> Reading:
    """Read a completion as an answer, or as a format failure with its reason.

    Args:
        text: the decoded completion without its end-of-turn token.
        labels: the closed label set.
        thinking: allow one thinking block, and blanks before and after it, before the answer.
        finished: False if the length cap cut the completion; an answer that did not end by itself
            is a format failure.
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
    """Return the text after the thinking block, all of the text if it has none, None if the block
    is not closed."""
    body = text.lstrip()
    if not body.startswith(THINK_OPEN):
        return text
    _, closed, rest = body[len(THINK_OPEN) :].partition(THINK_CLOSE)
    return rest.lstrip() if closed else None


def format_answer(labels: Sequence[str]) -> str:
    """Write the answer text for 1 to 3 distinct labels, primary first; `parse_answer` reads it back.

    Raises:
        ValueError: no label, more than 3, or a repeated one.
    """
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"labels has {len(labels)} entries, expected 1 to {MAX_LABELS}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels {list(labels)} repeat an entry")
    return SEPARATOR.join(labels)
