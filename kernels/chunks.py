"""Walks over tokens in chunks and leaves masked ones out.

A chunk is a slice if every row of it is live, and a tensor of row indices otherwise; both index a
tensor's first dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

type Rows = slice | Tensor


def row_chunks(live_T: Tensor | None, tokens: int, rows: int) -> Iterator[Rows]:
    """Yield chunks of at most `rows` of the rows where `live_T` is true (None: all), in order."""
    if live_T is None or bool(live_T.all()):
        yield from (slice(begin, min(begin + rows, tokens)) for begin in range(0, tokens, rows))
    else:
        yield from (chunk for chunk in live_T.nonzero()[:, 0].split(rows) if len(chunk))


def borders_inside(rows: Rows, cu_seqlens: Tensor) -> Tensor:
    """Return the borders of sequences in a chunk: cu_seqlens counted in the chunk's own rows.

    A sequence outside the chunk becomes empty.
    """
    if isinstance(rows, slice):
        return cu_seqlens.clamp(rows.start, rows.stop) - rows.start
    return torch.searchsorted(rows, cu_seqlens)
