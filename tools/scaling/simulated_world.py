"""Lets one process run as a rank of a world of thousands: what others would send is made by a seed.

The process group is torch's fake one. `enter` puts made values, of the true number and size, where this rank
would receive those of others: counts, sums and loads like its own, the units that others give away, flywheel
candidates and kept records. Making them is not timed, and nothing travels: the time of transports is no part
of a study. This rank is among the heavier ones, so it gives samples away and receives none.
"""

from __future__ import annotations

import pickle
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist

from selfemo.corpora.conversation import Corpus
from selfemo.process import exchange as wire

LIGHTEST = 0.95
"""Loads and counts of the others, as a share of this rank's: from here to 1, by assumption."""
UNIT_TOKENS = (100, 400)
UNIQUE_SHARE = 0.6
"""Share of the others' candidates whose words differ from this rank's; the rest are turns of the corpus that
several ranks read."""


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


def simulated_peers(meter: Meter, corpus: Corpus) -> Any:
    """Make the peers of a flywheel: candidates and kept records of the others are made of this rank's."""
    from selfemo.flywheel.admission import Candidate
    from selfemo.flywheel.corpus_turns import CorpusTurns
    from selfemo.flywheel.delivered import Delivered
    from selfemo.process.engine_ranks import EngineRanks
    from selfemo.run.flywheel_peers import FlywheelPeers

    rank, ranks = dist.get_rank(), dist.get_world_size()

    class SimulatedPeers(FlywheelPeers):
        """The ranks of a simulated world."""

        def decided[T, R](self, decide: Callable[[list[T]], list[R]], items: Sequence[T]) -> list[R]:
            mine = pickle.dumps(list(items))
            if not self.is_first:
                with meter.foreign():
                    answer = pickle.dumps([None] * len(items))
                    meter.received_bytes += len(answer)
                answers: list[R] = pickle.loads(answer)
                return answers
            with meter.foreign():
                sent = [mine, *(pickle.dumps(others(items, other)) for other in range(1, ranks))]
                meter.received_bytes += sum(map(len, sent))
            shares: list[list[T]] = [pickle.loads(pickled) for pickled in sent]
            decisions = iter(decide(list(chain.from_iterable(shares))))
            packed = [pickle.dumps([next(decisions) for _ in share]) for share in shares]
            return list(pickle.loads(packed[0]))

        def newest[T](self, items: Sequence[tuple[int, T]], limit: int) -> list[tuple[int, Delivered[T]]]:
            packed = [(made, wire.pack(item)) for made, item in items]
            with meter.foreign():
                wanted = min(limit, len(items) * ranks)
                copies = [packed[place % len(packed)] for place in range(wanted)]
                joined = pickle.dumps([(made, bytes(bytearray(item))) for made, item in copies])
                meter.received_bytes += len(joined)
            found = pickle.loads(joined)
            if self.is_first:
                found = pickle.loads(pickle.dumps(found))  # collected, then sent to all
            return [(made, Delivered(partial(wire.unpack, item))) for made, item in found]

        def readings(self, agreed: Any) -> Any:
            assert not agreed, "the corpus of a study has labels throughout"
            return agreed

    def others(items: Sequence[Any], other: int) -> list[Any]:
        draw = torch.Generator().manual_seed(other)
        fresh = (torch.rand(len(items), generator=draw) < UNIQUE_SHARE).tolist()
        salt = array("q", torch.randint(1 << 62, (len(items),), generator=draw).tolist())
        return [
            Candidate(item.role, item.label, salt[place : place + 1].tobytes() + item.words[8:])
            if is_fresh
            else item
            for place, (item, is_fresh) in enumerate(zip(items, fresh, strict=True))
        ]

    return SimulatedPeers(EngineRanks(ranks, rank), torch.device("cpu"), CorpusTurns(corpus))
