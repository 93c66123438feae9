"""Decide which positions of a packed sequence each context-parallel rank holds.

Causal attention gives late positions more work than early ones. Transformer Engine therefore cuts a
sequence into twice as many equal pieces as there are ranks and gives rank r the pieces r and
`2 * size - 1 - r`, one early and one late; megatron-core's rotary embedding relies on the same cut.
Sequences are padded at the end until they divide into pieces; no earlier position attends to the
padding, because attention is causal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ContextShare:
    """One rank's share of every sequence."""

    size: int = 1
    """Ranks that share a sequence."""
    rank: int = 0

    @property
    def pieces(self) -> int:
        """Number of pieces a sequence is cut into; its padded length is a multiple of it."""
        return 1 if self.size == 1 else 2 * self.size

    def padded(self, length_tokens: int) -> int:
        """Return the length of a sequence with the padding at its end, in tokens."""
        return length_tokens + -length_tokens % self.pieces

    def positions(self, padded_tokens: int) -> list[int]:
        """Return this rank's positions in a sequence of `padded_tokens`, in the order in which it
        holds them.
        """
        if self.size == 1:
            return list(range(padded_tokens))
        piece = padded_tokens // self.pieces
        first, second = self.rank * piece, (self.pieces - 1 - self.rank) * piece
        return [*range(first, first + piece), *range(second, second + piece)]
