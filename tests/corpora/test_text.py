"""Test text normalisation.

It repairs every known damage of the public copies, and a second pass changes nothing.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.corpora.text import clean_text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("company\u2019s", "company's"),
        ("company\x92s", "company's"),
        ("companyâ€™s", "company's"),
        ("companyâ\x80\x99s", "company's"),
        ("\u201cHi\u201d", '"Hi"'),
        ("\x93Hi\x94", '"Hi"'),
        ("â€œHiâ€\x9d", '"Hi"'),
        ("wait\u2026", "wait..."),
        ("wait\x85", "wait..."),
        ("no \x97 yes", "no \u2014 yes"),
        ("fiancé", "fiancé"),
        ("a\r\n b\u00a0\u2003c\t", "a b c"),
        ("\ufeffHi\x1b[31m", "Hi[31m"),
        ("Âge â la carte", "Âge â la carte"),
    ],
)
def test_known_damage_is_undone(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@given(st.text() | st.text(alphabet="â€™œ\x80\x81\x92\x99\x9d ‘\x07a"))
def test_cleaning_is_idempotent_and_leaves_no_controls(raw: str) -> None:
    clean = clean_text(raw)
    assert clean_text(clean) == clean
    assert clean == clean.strip()
    assert not [
        char for char in clean if char in "‘’“”\u2026\n\r\t" or ord(char) < 32 or 0x7F <= ord(char) < 0xA0
    ]
