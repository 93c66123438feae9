"""When each rank was in which phase: what the time line of a report is drawn from.

Spans are wall-clock seconds since the epoch, so that ranks on different machines stand on one axis, as exactly as their clocks agree.
Every rank collects its own, and rank 0 gathers them once per iteration; of a large world a fixed choice of ranks sends theirs.
"""

from __future__ import annotations

import torch.distributed as dist

MAX_RANKS = 64
"""Ranks whose spans are gathered: more than a time line can show, and few enough to write every iteration."""
SAME_SPAN_S = 1.0
"""Spans of one phase that are no further apart are one: 250 SFT steps are a bar, not 250."""

Span = tuple[str, float, float]
"""(phase, start, end) in seconds since the epoch."""


class PhaseSpans:
    """This rank's spans since the last gathering."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, name: str, start_s: float, end_s: float) -> None:
        """A phase has ended."""
        if self._spans and self._spans[-1][0] == name and start_s - self._spans[-1][2] <= SAME_SPAN_S:
            start_s = self._spans.pop()[1]
        self._spans.append((name, round(start_s, 3), round(end_s, 3)))

    def gather(self) -> dict[str, list[Span]]:
        """{rank: spans} on rank 0, {} elsewhere, and an empty list of spans to go on with. Collective."""
        spans, self._spans = self._spans, []
        return gather_by_rank(spans)


def gather_by_rank[T](value: T) -> dict[str, T]:
    """{rank: its value} of the chosen ranks on rank 0, {} elsewhere. Collective."""
    world_size, is_main = dist.get_world_size(), dist.get_rank() == 0
    chosen = chosen_ranks(world_size)
    gathered: list[T | None] = [None] * world_size
    dist.gather_object(value if dist.get_rank() in chosen else None, gathered if is_main else None, dst=0)
    return {str(rank): held for rank, held in enumerate(gathered) if held is not None}


def chosen_ranks(world_size: int) -> list[int]:
    """All ranks of a world of up to MAX_RANKS, else MAX_RANKS of them, evenly spaced, rank 0 among them."""
    count = min(world_size, MAX_RANKS)
    return [index * world_size // count for index in range(count)]
