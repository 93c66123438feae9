"""Holds what came from other ranks as it came, and unpacks an item when it is first looked at.

Every rank gets thousands of kept records, so that any may be drawn, and draws a few dozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import overload


class Delivered[T]:
    """One item."""

    def __init__(self, unpack: Callable[[], T]) -> None:
        self._unpack = unpack

    @cached_property
    def value(self) -> T:
        """The item itself."""
        return self._unpack()

    @classmethod
    def own(cls, item: T) -> Delivered[T]:
        """Wrap an item that this process has."""
        return cls(lambda: item)


class DeliveredItems[T](Sequence[T]):
    """A sequence of items, equal to a list of the same ones."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, items: Sequence[Delivered[T]]) -> None:
        self._items = items

    def __len__(self) -> int:
        """Return the number of items; unpacks none."""
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        """Unpack the items of a place or a slice."""
        if isinstance(place, slice):
            return [item.value for item in self._items[place]]
        return self._items[place].value

    def __eq__(self, other: object) -> bool:
        """Compare the items themselves."""
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        """Show the items as a list does."""
        return repr(list(self))
