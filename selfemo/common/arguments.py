"""Reads a command line's words as their writer means them."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable

_HOME = re.compile(r"(--[\w-]+=)(~.*)", re.DOTALL)


def with_home(words: Iterable[str]) -> list[str]:
    """Replace ~ in `--option=~/path` by the home directory: shells do so at the start of a word alone."""
    return [_with_home(word) for word in words]


def _with_home(word: str) -> str:
    found = _HOME.fullmatch(word)
    return found[1] + os.path.expanduser(found[2]) if found else word
