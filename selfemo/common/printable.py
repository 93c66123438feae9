"""Escapes foreign text, so that a terminal or a message can show it.

A dialogue, a model's answer, a file's key or a path may hold escape sequences that move the cursor, retitle
the window or turn the reading direction round. Every character that is not printable is therefore shown
escaped, as Python writes it.
"""

from __future__ import annotations

import re

QUOTE_CHARS = 60
"""Longest part of an offending value that a message shows, in characters."""


def printable(text: str) -> str:
    """Escape every character of `text` that is not printable.

    These are controls, format characters, line ends and lone surrogates.
    """
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    )


def one_line(text: str) -> str:
    """Put `text` on one line and escape it: line ends and the blanks around them become one blank."""
    return printable(re.sub(r"\s*\n\s*", " ", text))


def quote(value: object) -> str:
    """Show a value in a message: on one line, in ASCII, cut at QUOTE_CHARS."""
    try:
        shown = ascii(value[: QUOTE_CHARS + 1] if isinstance(value, str) else value)
    # lists nested to the depth of the stack; integers of thousands of digits
    except (RecursionError, ValueError):
        shown = f"<{type(value).__name__} too large to show>"
    return shown if len(shown) <= QUOTE_CHARS else shown[: QUOTE_CHARS - 3] + "..."
