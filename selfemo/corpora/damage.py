"""Find the traces of characters that a program destroyed in a text: what was there cannot be told any
more, so nothing is repaired here, and the file's source is named as the remedy.

`clean_text` has repaired what can be repaired before. A sound English text seldom matches a pattern
here: 12 of the 13,708 published texts of MELD do (and were destroyed), and one of EmoryNLP ("&ndash;").
"""

from __future__ import annotations

import regex

_STEMS = "ai|are|ca|could|did|do|does|had|has|have|is|might|must|need|should|was|were|wo|would"  # ... n't
_LOST = r"(?:[?¿*_\uFFFD\u25A1\u25AF]|[^\x00-\x7F'\u2019\u02BC\u2032\u00B4\u2018\uFF07\p{M}])"
"""A character where an apostrophe was: "?", a box, or what another encoding has at its byte."""
_PATTERNS = (
    ("a lost character", regex.compile(r"\uFFFD"), "U+FFFD in place of a character"),
    (
        "a lost apostrophe",
        regex.compile(
            rf"\b(?:{_STEMS})n{_LOST}t\b"
            rf"|\b(?:I|you|we|they|he|she|it|that|there|what|who|here|let|how|where){_LOST}(?:s|m|re|ve|ll|d)\b"
            r"|[a-z]\?(?:s|t|re|ve|ll|d|m)\b"
            rf"|\b(?:{_STEMS})n t\b",
            regex.IGNORECASE,
        ),
        "another character in place of an apostrophe",
    ),
    (
        "a misread character",
        regex.compile(r"(?<=[a-z])[\u00C0-\u00DE](?!\p{Ll})|(?<!\p{L})Ò\p{L}[^ÒÓ]*Ó(?!\p{L})"),
        "a letter of another encoding",
    ),
    (
        "misread UTF-8",
        regex.compile(r"\u9225|\u7AB6(?!\u308C)"),  # the first two bytes of a curly quote, as one letter
        "UTF-8 that was read as GBK or Shift JIS",
    ),
    (
        "characters replaced by ?",
        regex.compile(r"\A(?:(?:\?{2,}[!.,;:]* )+\?+|\?{6,})[!.,;:]*\Z"),
        "question marks in place of its letters",
    ),
    (
        "an escape sequence",
        regex.compile(
            r"&(?:amp|lt|gt|quot|apos|nbsp|[lr][sd]quo|hellip|[mn]dash|[a-z](?:acute|grave|circ|uml|tilde)"
            r"|#\d+|#x[0-9a-f]+);|\\(?:u[0-9a-f]{4}|x[0-9a-f]{2}|[nrt]\b|\d{3}\\\d{3})|(?<=[a-z])\\['\"]"
            r"|<br ?/?>|<U\+[0-9a-f]{4,6}>|_x00[0-9a-f]{2}_|=E2=80=|(?<=[a-z])%(?:E2%80%|2[017C])(?=[a-z%])",
            regex.I,
        ),
        "an escape sequence that was never decoded",
    ),
)
_SUSPECT = regex.compile(r"[^\x00-\x7F]|[?&\\*_%=<]|n t\b", regex.IGNORECASE)
_FOREIGN_RUN = regex.compile(r"[^\x00-\x7F]{2,}")
_COMMON = regex.compile(r"[\u00A0-\u017F\u2000-\u206F\u20AC\u2122]+|[^\x00-\x7F]*\p{L}[^\x00-\x7F]+")
"""What misread UTF-8 must decode to, so that a word such as "CAFÉ»" is no trace of it."""
_MISREADINGS = (
    *("cp1252", "latin-1", "mac_roman", "cp437", "cp850"),
    *("cp1250", "cp1251", "cp1253", "iso8859-2"),
)


def find_damage(text: str) -> tuple[str, str] | None:
    """Return (kind, what was found, with its place in the text) of the first trace of destroyed characters.

    Args:
        text: after `clean_text`.
    """
    if not _SUSPECT.search(text):
        return None
    for kind, pattern, what in _PATTERNS:
        if match := pattern.search(text):
            return kind, f"{what} ({_around(text, match.start(), match.end())})"
    for run in _FOREIGN_RUN.finditer(text):
        if (codec := _misread_as(run.group())) is not None:
            around = _around(text, run.start(), run.end())
            return "misread UTF-8", f"UTF-8 that was read as {codec} ({around})"
    return None


def _misread_as(run: str) -> str | None:
    for codec in _MISREADINGS:
        try:
            decoded = run.encode(codec).decode("utf-8")
        except UnicodeError:
            continue
        if _COMMON.fullmatch(decoded):
            return codec
    return None


def _around(text: str, start: int, end: int) -> str:
    """Quote the place with a few characters on both sides."""
    return ascii(text[max(0, start - 12) : end + 12])
