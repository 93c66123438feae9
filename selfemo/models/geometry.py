"""Describe shards, files and the reshard plan by rectangles of tensors.

A `Box` says that a rectangle of a Hugging Face tensor sits at some offset in a local tensor; a `Placement` is
a local tensor made of boxes. Elements that no box covers are padding and hold zero. The module is pure Python
over integers, so that a plan for hundreds of ranks is made and checked without allocating a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A rectangle of one Hugging Face tensor and its place in a local tensor."""

    tensor: str
    """Name of the Hugging Face tensor."""
    start: Shape
    """First index per dimension in that tensor."""
    local_start: Shape
    """First index per dimension in the local tensor."""
    shape: Shape
    """Extent per dimension, the same on both sides."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def clip_rows(self, row_start: int, row_stop: int) -> Box | None:
        """Return the part of the box that lies in local rows [row_start, row_stop), or None."""
        first = max(row_start, self.local_start[0])
        stop = min(row_stop, self.local_start[0] + self.shape[0])
        if first >= stop:
            return None
        shift = first - self.local_start[0]
        return Box(
            self.tensor,
            (self.start[0] + shift, *self.start[1:]),
            (first, *self.local_start[1:]),
            (stop - first, *self.shape[1:]),
        )


@dataclass(frozen=True)
class Placement:
    """A local tensor as boxes of Hugging Face tensors; elements outside the boxes are padding."""

    shape: Shape
    boxes: tuple[Box, ...]

    @property
    def elements(self) -> int:
        """Elements of the local tensor, padding included."""
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """True if the boxes cover the local tensor, so that none of it is padding."""
        return sum(box.elements for box in self.boxes) == self.elements


def overlap(source: Box, target: Box) -> Box | None:
    """Return the rectangle of one tensor that both boxes hold, or None if there is none.

    Returns:
        A box whose `start` is in the source's local tensor and `local_start` in the target's.
    """
    if source.tensor != target.tensor:
        return None
    first = tuple(max(a, b) for a, b in zip(source.start, target.start))
    shape = tuple(
        min(a + n, b + m) - f
        for a, n, b, m, f in zip(source.start, source.shape, target.start, target.shape, first)
    )
    if any(extent <= 0 for extent in shape):
        return None
    return Box(
        source.tensor,
        tuple(f - s + o for f, s, o in zip(first, source.start, source.local_start)),
        tuple(f - s + o for f, s, o in zip(first, target.start, target.local_start)),
        shape,
    )


def region(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the index expression of a rectangle, for tensors and for safetensors slices."""
    return tuple(slice(first, first + extent) for first, extent in zip(start, shape))


class Tensor(Protocol):
    """Declares what this module needs of a tensor: indexing and copying (torch.Tensor has both)."""

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...

    def copy_(self, source: object, /) -> object: ...


def fill_hf[T: Tensor](
    hf_tensors: Mapping[str, T],
    placement: Placement,
    local: T,
    first_row: int = 0,
    stop_row: int | None = None,
) -> None:
    """Copy every box of `placement` out of `local` into its Hugging Face tensor.

    Args:
        local: rows [first_row, stop_row) of the local tensor; all of it by default.
    """
    for box in placement.boxes:
        part = box.clip_rows(first_row, placement.shape[0] if stop_row is None else stop_row)
        if part is not None:
            start = (part.local_start[0] - first_row, *part.local_start[1:])
            hf_tensors[part.tensor][region(part.start, part.shape)].copy_(local[region(start, part.shape)])
