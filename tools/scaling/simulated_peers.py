"""Makes what the flywheels of other ranks would send: candidates and kept records like this rank's own.

A rank of thousands has a candidate or none in an iteration. So its warm-up iteration considers every record,
and what the others send later is made of these. How many they send follows from the true numbers.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, cycle, islice, pairwise
from typing import Any

import torch
import torch.distributed as dist

from selfemo.corpora.conversation import Corpus
from selfemo.flywheel.corpus_turns import CorpusTurns
from selfemo.flywheel.delivered import Delivered
from selfemo.process import exchange as wire
from selfemo.process.engine_ranks import EngineRanks
from selfemo.run.flywheel_peers import FlywheelPeers
from tools.scaling.simulated_world import Meter

UNIQUE_SHARE = 0.6
"""Share of the others' candidates whose words differ from this rank's; the rest are turns of the corpus that
several ranks read."""
KINDS = 2
"""`newest` is called for dialogues, then for replies, in each iteration."""


class SimulatedPeers(FlywheelPeers):
    """The ranks of a simulated world, seen from this one."""

    def __init__(self, meter: Meter, corpus: Corpus, limit: int) -> None:
        """Begin with the warm-up iteration.

        Args:
            limit: flywheel.candidates_per_iteration.
        """
        super().__init__(
            EngineRanks(dist.get_world_size(), dist.get_rank()), torch.device("cpu"), CorpusTurns(corpus)
        )
        self._meter, self._limit, self._ranks_of_world = meter, limit, dist.get_world_size()
        self.is_warming = True
        """Whether this rank has every record considered, and nobody else any."""
        self._candidates: list[Any] = []
        self._kept: list[list[tuple[int, bytes]]] = []
        self._calls = self._considered = 0

    def numbered(self, count: int) -> tuple[int, int]:
        """Number records: while warming, as if there were no other rank's."""
        before, total = (0, count) if self.is_warming else super().numbered(count)
        self._considered = min(total, self._limit)
        return before, total

    def decided[T, R](self, decide: Callable[[list[T]], list[R]], items: Sequence[T]) -> list[R]:
        """Decide on candidates of all ranks if this is the first one; else receive that all are kept."""
        if self.is_warming:
            self._candidates = list(items)
        mine = pickle.dumps(list(items))
        if not self.is_first:
            with self._meter.foreign():
                answer = pickle.dumps([None] * len(items))
                self._meter.received_bytes += len(answer)
            answers: list[R] = pickle.loads(answer)
            return answers
        with self._meter.foreign():
            sent = [mine, *map(pickle.dumps, self._of_others())]
            self._meter.received_bytes += sum(map(len, sent))
        shares: list[list[T]] = [pickle.loads(pickled) for pickled in sent]
        decisions = iter(decide(list(chain.from_iterable(shares))))
        packed = [pickle.dumps([next(decisions) for _ in share]) for share in shares]
        return list(pickle.loads(packed[0]))

    def newest[T](self, items: Sequence[tuple[int, T]], limit: int) -> list[tuple[int, Delivered[T]]]:
        """Receive kept records: as large a share of what was considered as of this rank's in the warm-up."""
        packed = [(made, wire.pack(item)) for made, item in items]
        kind, self._calls = self._calls % KINDS, self._calls + 1
        with self._meter.foreign():
            if self.is_warming:
                self._kept.append(packed)
            share = len(self._kept[kind]) / max(1, len(self._candidates))
            wanted = min(limit, round(share * self._considered))
            copies = [
                (made, bytes(bytearray(item))) for made, item in islice(cycle(self._kept[kind]), wanted)
            ]
            joined = pickle.dumps(copies)
            self._meter.received_bytes += len(joined)
        found = pickle.loads(joined)
        if self.is_first:
            pickle.dumps(found)  # collected, then sent to all; the sender does not read it
        return [(made, Delivered(partial(wire.unpack, item))) for made, item in found]

    def readings(self, agreed: Any) -> Any:
        """Receive no readings of a teacher."""
        assert not agreed, "the corpus of a study has labels throughout"
        return agreed

    def _of_others(self) -> list[list[Any]]:
        """Make the candidates of every other rank: an equal share of those considered."""
        if self.is_warming:
            return []
        ranks, considered = self._ranks_of_world, self._considered
        drawn, draw = cycle(self._candidates), torch.Generator().manual_seed(self._calls)
        ends = [(other + 1) * considered // ranks for other in range(ranks)]
        counts = [end - begin for begin, end in pairwise(ends)]
        fresh = (torch.rand(sum(counts), generator=draw) < UNIQUE_SHARE).tolist()
        salt = array("q", torch.randint(1 << 62, (sum(counts),), generator=draw).tolist())
        made = [
            (role, label, salt[place : place + 1].tobytes() + words[8:] if is_fresh else words)
            for place, (is_fresh, (role, label, words)) in enumerate(zip(fresh, drawn, strict=False))
        ]
        rest = iter(made)
        return [list(islice(rest, count)) for count in counts]
