"""Work on many items, dealt over the ranks of the run: each rank computes a contiguous share, and every rank gets all results.

For work whose results are small beside what they cost: results travel pickled, between the processes of this run and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from selfemo.common.errors import on_all_ranks
from selfemo.process import watchdog


class Deal(Protocol):
    """How a function is applied to many items, so that who computes what is the caller's business."""

    def __call__[T, R](self, compute: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        """`compute` of every item, in order."""
        ...


def one_by_one[T, R](compute: Callable[[T], R], items: Sequence[T], /) -> list[R]:
    """`compute` of every item, in order, here."""
    return [compute(item) for item in items]


def map_over_ranks[T, R](compute: Callable[[T], R], items: Sequence[T], /) -> list[R]:
    """`compute` of every item, in order, on every rank. Collective: every rank calls it with the same items.

    Raises:
        Exception: what `compute` raised, on every rank alike; of several ranks the first one's.
    """
    with watchdog.doing(f"{compute.__name__.strip('_')} of {len(items)} items over the ranks"):
        return _over_ranks(compute, items)


def _over_ranks[T, R](compute: Callable[[T], R], items: Sequence[T]) -> list[R]:
    import torch.distributed as dist  # here: the report reads records whose module names Deal, and needs no torch

    ranks, rank = dist.get_world_size(), dist.get_rank()
    mine: list[R] = []
    raised: Exception | None = None
    try:
        mine = one_by_one(compute, items[len(items) * rank // ranks : len(items) * (rank + 1) // ranks])
    except Exception as error:  # noqa: BLE001 - raised again below, on every rank
        raised = error
    shares: list[tuple[list[R], Exception | None]] = [(mine, raised)] * ranks
    if ranks > 1:
        dist.all_gather_object(shares, (mine, raised))
    for _, failure in shares:
        if failure is not None:
            raise on_all_ranks(failure)
    return [result for share, _ in shares for result in share]
