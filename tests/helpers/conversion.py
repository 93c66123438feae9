"""Convert in tests without showing progress."""

from __future__ import annotations


def quiet(_name: str, _bytes: int) -> None:
    """Ignore a converter's report that a tensor of so many bytes is done."""
