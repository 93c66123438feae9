"""Deals work on many items over the ranks of the run.

Each rank computes a contiguous share, and every rank gets all results.

For work whose results are small compared with its cost: results travel pickled, between the processes of this
run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from selfemo.common.errors import on_all_ranks
from selfemo.process import watchdog

if TYPE_CHECKING:
    import torch.distributed as dist


class Deal(Protocol):
    """Applies a function to many items; the caller decides which process computes which item."""

    def __call__[T, R](self, compute: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        """Apply `compute` to every item; results in order."""
        ...


def one_by_one[T, R](compute: Callable[[T], R], items: Sequence[T], /) -> list[R]:
    """Apply `compute` to every item in this process; results in order."""
    return [compute(item) for item in items]


def over_group(group: dist.ProcessGroup | None) -> Deal:
    """Return a Deal that shares work out over the ranks of a group (None: all ranks).

    The Deal is collective: every rank of the group calls it with the same items, and gets all results, in
    order. It raises what `compute` raised, on every rank alike; if several ranks raise, the first one's.
    """

    def deal[T, R](compute: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        with watchdog.doing(f"{compute.__name__.strip('_')} of {len(items)} items over the ranks"):
            return _over_ranks(compute, items, group)

    return deal


def _over_ranks[T, R](
    compute: Callable[[T], R], items: Sequence[T], group: dist.ProcessGroup | None
) -> list[R]:
    # imported here: the report reads records whose module names Deal, and needs no torch
    import torch.distributed as dist

    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    mine: list[R] = []
    raised: Exception | None = None
    try:
        mine = one_by_one(compute, items[len(items) * rank // ranks : len(items) * (rank + 1) // ranks])
    except Exception as error:  # noqa: BLE001 - raised again below, on every rank
        raised = error
    shares: list[tuple[list[R], Exception | None]] = [(mine, raised)] * ranks
    if ranks > 1:
        dist.all_gather_object(shares, (mine, raised), group=group)
    for _, failure in shares:
        if failure is not None:
            raise on_all_ranks(failure)
    return [result for share, _ in shares for result in share]
