"""Cut a text where the tokenizer cuts too, so that each part is encoded, and cached, alone.

Cuts are line ends, and the blank after a colon: prompts of one dialogue differ in their last line or two, and
what a speaker says is encoded once. A byte-level BPE encodes the pieces of its pre-tokenizer one by one, so
the ids of a text are the ids of its parts one after another wherever no piece spans a cut. Whether one may
depends on the pre-tokenizer's pattern alone, which sees kinds of characters (letters, digits, blanks, signs).
It is therefore tried on every pair of kinds beforehand.
"""

from __future__ import annotations

import json
import re
from itertools import product

from tokenizers import Tokenizer

_LAST = (
    "a",
    "Z",
    "7",
    "é",
    "語",
    "ن",
    "!",
    ".",
    "'",
    "'s",
    '"',
    ":",
    "_",
    "€",
    "😀",
    "e\u0301",
    "\u200d",
    "\ufe0f",
)
"""Ends of a line, by kind of character."""
_FIRST = (*_LAST, "> a", "'S", "A: b", "\u0301")
"""Beginnings of the next line."""
_SAME_LENGTH = (None, "NFC")
"""Normalisers that never look across a line end: no character composes with one."""


class LineCuts:
    """The places at which one tokenizer's encoding falls apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Try one line end, two in a row, and a blank.

        Args:
            tokenizer: without added tokens, which are matched before a text is cut.
        """
        safe = [ends for ends in ("\n\n", "\n") if _falls_apart(tokenizer, ends)]
        self._at_line_ends = "\n" in safe
        self.at_blanks = _falls_apart(tokenizer, "", " ")
        """Whether a blank between two characters that are none always begins a piece."""
        cuts = [f"{ends}(?=\\S)" for ends in safe] + [r":(?= \S)"] * self.at_blanks
        self._ends = re.compile("|".join(cuts)) if cuts else None

    def before_last_line(self, text: str) -> tuple[str, str]:
        """Cut `text` where its last line begins; ("", text) if it cannot be cut there."""
        head, end, last = text.rpartition("\n")
        if not (self._at_line_ends and head and last) or head[-1].isspace() or last[0].isspace():
            return "", text
        return head + end, last

    def lines(self, text: str) -> list[str]:
        """Cut `text`; joined, the parts are `text` again, and their ids are its ids."""
        if self._ends is None:
            return [text]
        found, begin = [], 0
        for match in self._ends.finditer(text):
            # a blank before the line end may belong to its piece
            if match.start() and not text[match.start() - 1].isspace():
                found.append(text[begin : match.end()])
                begin = match.end()
        found.append(text[begin:])
        return found


def _falls_apart(tokenizer: Tokenizer, ends: str, begins: str = "") -> bool:
    """Tell whether pieces never span the place after `ends` and before `begins`, beside no other blanks."""
    normalizer = json.loads(tokenizer.to_str())["normalizer"]
    if (normalizer and normalizer["type"]) not in _SAME_LENGTH or tokenizer.pre_tokenizer is None:
        return False
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str
    for last, first in product(_LAST, _FIRST):
        left, right = f"{last}{ends}", f"{begins}{first} {first}{ends}"
        alone = [piece for piece, _ in (*pieces(left), *pieces(right))]
        if [piece for piece, _ in pieces(left + right)] != alone:
            return False
    return True
