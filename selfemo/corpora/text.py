"""One spelling for every text: straight quotes, single blanks, no damaged or invisible characters.

MELD alone circulates in three spellings of the same apostrophe (U+2019, the cp1252 control U+0092, and "â€™"). Left as they
are, equal texts do not match across corpora, and a tokenizer trained on one copy reads another badly. Curly quotes become
straight because EmoryNLP has only those. Letters, case, dashes and punctuation stay.
"""

from __future__ import annotations

import re

_QUOTES = {"\u2018": "'", "\u2019": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"', "\u201f": '"', "\u2026": "..."}
_DASHES = {"\u2013": "\u2013", "\u2014": "\u2014"}


def _as_cp1252(data: bytes) -> str:
    """Bytes as Windows programs read them: cp1252, whose five undefined bytes pass through as controls."""
    return "".join(bytes([b]).decode("cp1252") if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b) for b in data)


_DOUBLY_ENCODED = {
    misread: right
    for char, right in {**_QUOTES, **_DASHES}.items()
    for misread in (_as_cp1252(char.encode()), char.encode().decode("latin-1"))
}
"""UTF-8 punctuation that someone read as cp1252 or Latin-1 and saved again, e.g. "â€™"."""
_DOUBLY_ENCODED_PATTERN = re.compile("|".join(map(re.escape, _DOUBLY_ENCODED)))

_C0_DROPPED = {code: None for code in (*range(0x20), 0x7F) if not chr(code).isspace()}
_SINGLE = {
    **{code: _QUOTES.get(_as_cp1252(bytes([code])), _as_cp1252(bytes([code]))) for code in range(0x80, 0xA0)},
    **dict.fromkeys((0x81, 0x8D, 0x8F, 0x90, 0x9D), " "),  # undefined in cp1252, so nothing to restore
    **{ord(char): right for char, right in _QUOTES.items()},
    0xFEFF: " ",
}
"""Code point to replacement: C1 controls are cp1252 bytes that were never decoded, curly quotes become straight."""


def clean_text(text: str) -> str:
    """The project's spelling of a text; idempotent. Whitespace of any kind, line ends included, becomes one blank."""
    text = text.translate(_C0_DROPPED)
    text = _DOUBLY_ENCODED_PATTERN.sub(lambda match: _DOUBLY_ENCODED[match.group()], text)
    return " ".join(text.translate(_SINGLE).split())
