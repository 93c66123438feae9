"""Text that others wrote, as a terminal or a message may show it.

A dialogue, a model's answer, a file's key or a path may hold escape sequences that move the cursor, retitle the window or turn the reading
direction round. Whatever is not printable is therefore shown escaped, as Python would write it.
"""

from __future__ import annotations

import re

QUOTE_CHARS = 60
"""How much of an offending value a message shows."""


def printable(text: str) -> str:
    """`text` with every character that is not printable (controls, format characters, line ends, lone surrogates) written as an escape."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    )


def one_line(text: str) -> str:
    """As `printable`, after line ends and the blanks around them became one blank."""
    return printable(re.sub(r"\s*\n\s*", " ", text))


def quote(value: object) -> str:
    """A value as a message shows it: on one line, in ASCII, cut at QUOTE_CHARS."""
    try:
        shown = ascii(value[: QUOTE_CHARS + 1] if isinstance(value, str) else value)
    except (
        RecursionError,
        ValueError,
    ):  # lists nested to the depth of the stack; integers of thousands of digits
        shown = f"<{type(value).__name__} too large to show>"
    return shown if len(shown) <= QUOTE_CHARS else shown[: QUOTE_CHARS - 3] + "..."
