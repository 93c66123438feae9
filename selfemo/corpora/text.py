"""Normalise every text to one spelling: straight quotes, single blanks, no damaged or invisible characters.

MELD alone circulates in three spellings of the same apostrophe (U+2019, the cp1252 control U+0092,
and "â€™"). Left as they are, equal texts do not match across corpora, and a tokenizer trained on
one copy splits another badly. Curly quotes become straight because EmoryNLP has only those.
Letters, case, dashes and punctuation stay.
"""

from __future__ import annotations

import re

_STRAIGHT = {
    "\u2018": "'",
    "\u2019": "'",
    "\u201b": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u201f": '"',
    "\u2026": "...",
}
_DASHES = {"\u2013": "\u2013", "\u2014": "\u2014"}
_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
"""Bytes that cp1252 leaves undefined; programs pass them through as controls."""
_CP1252 = {code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in _UNDEFINED}

_DROPPED = {code: None for code in (*range(0x20), 0x7F) if not chr(code).isspace()}
_DOUBLY_ENCODED = {
    char.encode().decode("latin-1").translate(_CP1252): right
    for char, right in {**_STRAIGHT, **_DASHES}.items()
}
"""UTF-8 punctuation that a program read as cp1252 and saved again, e.g. "â€™"."""
_DOUBLY_ENCODED_PATTERN = re.compile("|".join(map(re.escape, _DOUBLY_ENCODED)))
_FINAL = {
    **{ord(char): right for char, right in _STRAIGHT.items()},
    **dict.fromkeys((*_UNDEFINED, 0xFEFF), " "),
}


def clean_text(text: str) -> str:
    """Rewrite a text in the project's spelling; idempotent. Whitespace of any kind, line ends
    included, becomes one blank.

    C1 controls are cp1252 bytes that were never decoded; once they are, both ways of misreading
    UTF-8 look alike.
    """
    text = text.translate(_DROPPED).translate(_CP1252)
    text = _DOUBLY_ENCODED_PATTERN.sub(lambda match: _DOUBLY_ENCODED[match.group()], text)
    return " ".join(text.translate(_FINAL).split())
