"""Split texts of any language into words, by Unicode's rules (UAX 29), and fold them for comparison.

Chinese, Japanese and Thai put no blanks between words. UAX 29 alone knows no dictionary: there each
ideograph, each hiragana and each Thai or Khmer cluster counts as one word, a run of katakana as one.
The tables are those of the `regex` package.
"""

from __future__ import annotations

import unicodedata

import regex

_BOUNDARY = regex.compile(r"\b", regex.WORD | regex.V1)
_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:['’][\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*")
_IGNORED = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_LATIN_ACCENTS = regex.compile(r"(\p{Script=Latin})\p{M}+")
_WITHOUT_BLANKS = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Line_Break=Complex_Context}]"
_PIECE_BORDER = regex.compile(
    rf"\b(?<=\S)(?=\p{{L}})(?:(?<={_WITHOUT_BLANKS}\p{{M}}*\P{{L}}*)|(?={_WITHOUT_BLANKS}))",
    regex.WORD | regex.V1,
)


def fold(text: str) -> str:
    """Reduce a text to what caseless comparison keeps: compatibility form, folded case, no invisible
    characters (Unicode's toNFKC_Casefold, D146)."""
    if text.isascii():
        return text.lower()
    visible = _IGNORED.sub("", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFKC", visible)


def without_latin_accents(text: str) -> str:
    """Remove the marks of Latin letters alone, as in "Fiancé": elsewhere marks are vowels."""
    bare = _LATIN_ACCENTS.sub(r"\1", unicodedata.normalize("NFD", text))
    return unicodedata.normalize("NFC", bare)


def words(text: str) -> list[str]:
    """Split a text into folded words.

    Apostrophes inside a word stay (curly ones made straight); punctuation is dropped, and ends a word
    where UAX 29 would not: "ok.joy" is two.
    """
    folded = fold(text)
    segments = [folded] if folded.isascii() else _BOUNDARY.split(folded)
    return [word.replace("’", "'") for segment in segments for word in _WORD.findall(segment)]


def words_and_marks(text: str) -> list[str]:
    """Split a text into folded words, numbers, marks and emoji, by UAX 29; blanks are dropped.

    Each of several marks in a row is a unit of its own.
    """
    return [unit for unit in _BOUNDARY.split(fold(text).replace("’", "'")) if unit.strip()]


def pieces(text: str) -> list[str]:
    """Split a text into units with the blanks and punctuation around them, so that "".join gives it back.

    A unit is what blanks separate and, in scripts without blanks, what UAX 29 separates.
    """
    spaced = regex.findall(r"\s*\S+(?:\s+$)?", text)
    return [
        piece
        for unit in spaced
        for piece in ([unit] if unit.isascii() else _PIECE_BORDER.split(unit))
        if piece
    ]
