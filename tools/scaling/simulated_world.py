"""Lets one process run as a rank of a world of thousands: what others would send is made by a seed.

The process group is torch's fake one. `enter` puts made values, of the true number and size, where this rank
would receive those of others: counts, sums and loads like its own, and the units that others give away
(simulated_peers.py makes what their flywheels send). Making them is not timed, and nothing travels: the time
of transports is no part of a study. This rank is among the heavier ones, so it gives samples away and
receives none.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from selfemo.process import exchange as wire

LIGHTEST = 0.95
"""Loads and counts of the others, as a share of this rank's: from here to 1, by assumption."""
UNIT_TOKENS = (100, 400)


class Meter:
    """Adds up the bytes that a rank receives, and the processor time that is not its own."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.foreign_s = 0.0

    @contextmanager
    def foreign(self) -> Iterator[None]:
        """Leave out the time of the block: the engine's, or that of making what others send."""
        started = time.process_time()
        yield
        self.foreign_s += time.process_time() - started

    def own_s(self) -> float:
        """Return the processor time so far that is this rank's own."""
        return time.process_time() - self.foreign_s


def enter(ranks: int, rank: int, meter: Meter) -> None:
    """Make this process a rank of a simulated world. Modules that exchange are imported afterwards."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    draw = torch.Generator().manual_seed(rank)
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        meter.received_bytes += tensor.nbytes
        if options.get("op") == dist.ReduceOp.SUM:
            tensor *= ranks
        return all_reduce(tensor, *arguments, **options)

    def rows_of_ranks(row: Sequence[int], device: torch.device) -> list[list[int]]:
        with meter.foreign():
            shares = LIGHTEST + (1 - LIGHTEST) * torch.rand(ranks, 1, generator=draw)
            shares[rank] = 1
            joined = (torch.tensor(row) * shares).round().long()
            meter.received_bytes += joined.nbytes
        return joined.tolist()

    def tables_of_ranks(table: torch.Tensor, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        with meter.foreign():
            begin = sum(rows[:rank])
            owner_U = torch.repeat_interleave(torch.arange(ranks), torch.tensor(rows))
            first_U = (1 << 24) + torch.arange(sum(rows))
            size_U = torch.full_like(first_U, 8)
            length_U = torch.randint(*UNIT_TOKENS, first_U.shape, generator=draw)
            joined = torch.stack([first_U, size_U, length_U, owner_U, owner_U], dim=1).int()
            joined[begin : begin + len(table)] = table
            meter.received_bytes += ranks * max(rows) * table.shape[1] * joined.element_size()
        return joined

    def exchange(sent: Mapping[int, array[int]], device: torch.device) -> dict[int, array[int]]:
        counts = [len(sent.get(other, ())) for other in range(ranks)]
        received = {rank: sent[rank]} if rank in sent else {}
        meter.received_bytes += 8 * len(counts) + sum(4 * len(found) for found in received.values())
        return received

    vars(dist).update(all_reduce=counted)
    for made in (rows_of_ranks, tables_of_ranks, exchange):
        setattr(wire, made.__name__, made)
