"""Collects when each rank was in which phase, for the time line of a report.

Spans are wall-clock seconds since the epoch, so that ranks on different machines share one axis, as exactly
as their clocks agree. Every rank collects its own, and rank 0 gathers them once per iteration. In a large
world only a fixed choice of ranks sends theirs.
"""

from __future__ import annotations

import torch.distributed as dist

MAX_RANKS = 64
"""Ranks whose spans are gathered: more than a time line can show, few enough to write every iteration."""
SAME_SPAN_S = 1.0
"""Spans of one phase with a gap of at most this are joined: 250 SFT steps are one bar, not 250."""

Span = tuple[str, float, float]
"""(phase, start, end) in seconds since the epoch."""


class PhaseSpans:
    """This rank's spans since the last gathering."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, name: str, start_s: float, end_s: float) -> None:
        """Add the span of a phase that has ended."""
        if self._spans and self._spans[-1][0] == name and start_s - self._spans[-1][2] <= SAME_SPAN_S:
            start_s = self._spans.pop()[1]
        self._spans.append((name, round(start_s, 3), round(end_s, 3)))

    def gather(self) -> dict[str, list[Span]]:
        """Gather {rank: spans} on rank 0, {} elsewhere, and start an empty list. Collective."""
        spans, self._spans = self._spans, []
        return gather_by_rank(spans)


def gather_by_rank[T](value: T) -> dict[str, T]:
    """Gather {rank: its value} of the chosen ranks on rank 0, {} elsewhere. Collective."""
    world_size, is_main = dist.get_world_size(), dist.get_rank() == 0
    chosen = chosen_ranks(world_size)
    gathered: list[T | None] = [None] * world_size
    dist.gather_object(value if dist.get_rank() in chosen else None, gathered if is_main else None, dst=0)
    return {str(rank): held for rank, held in enumerate(gathered) if held is not None}


def chosen_ranks(world_size: int) -> list[int]:
    """Choose at most MAX_RANKS ranks: all of them, or evenly spaced ones with rank 0 among them."""
    count = min(world_size, MAX_RANKS)
    return [index * world_size // count for index in range(count)]
