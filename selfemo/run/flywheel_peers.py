"""Joins the flywheels of all ranks: the first one decides, every engine's first rank writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from selfemo.common.errors import on_all_ranks
from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Corpus
from selfemo.flywheel.corpus_turns import CorpusTurns
from selfemo.flywheel.delivered import Delivered
from selfemo.flywheel.flywheel import Flywheel
from selfemo.flywheel.lessons import Lesson
from selfemo.flywheel.peers import Alone
from selfemo.process import watchdog
from selfemo.process.collectives import on_rank0, together
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.exchange import pack, rows_of_ranks, send_objects, tables_of_ranks, unpack
from selfemo.process.reduction import OverRanks
from selfemo.records.directory import flywheel_file, flywheel_files
from selfemo.rewards.scoring import Rewards
from selfemo.selfplay.openings import Place


def open_flywheel(
    config: RunConfig, corpus: Corpus, rewards: Rewards, root: Path, ranks: EngineRanks, device: torch.device
) -> Flywheel:
    """Open the flywheel of the run in `root`, with the records that its files hold. Collective."""
    return Flywheel(
        config.flywheel,
        corpus,
        rewards,
        flywheel_file(root, ranks.engine),
        is_writer=ranks.part == 0,
        peers=FlywheelPeers(ranks, device, CorpusTurns(corpus)),
        files=on_rank0(lambda: flywheel_files(root)),
        has_reader=config.teacher_reads_replies,
    )


class FlywheelPeers(Alone):
    """The ranks of a run. Every method is collective."""

    def __init__(self, ranks: EngineRanks, device: torch.device, turns: CorpusTurns) -> None:
        self._ranks, self._device, self._turns = ranks, device, turns
        self.is_first = dist.get_rank() == 0

    def numbered(self, count: int) -> tuple[int, int]:
        """Number the items of all ranks: how many precede this rank's `count`, and how many there are."""
        counts = [row[0] for row in rows_of_ranks([count], self._device)]
        return sum(counts[: dist.get_rank()]), sum(counts)

    def totals(self, counts: Sequence[int]) -> list[int]:
        """Add up counts over the ranks."""
        return OverRanks(self._device).counts(counts)

    def decided[T, R](self, decide: Callable[[list[T]], list[R]], items: Sequence[T]) -> list[R]:
        """Let the first rank decide on the items of all ranks, in order; returns this rank's decisions.

        Raises:
            Exception: raised by `decide`, on every rank alike.
        """
        asked: dict[int, list[T]] = send_objects({0: list(items)}, self._device)
        answers: dict[int, tuple[list[R], Exception | None]] = {}
        if self.is_first:
            try:
                decisions = iter(decide(list(chain.from_iterable(asked.values()))))
                answers = {rank: ([next(decisions) for _ in mine], None) for rank, mine in asked.items()}
            except Exception as error:  # noqa: BLE001 - raised again below, on every rank
                answers = {rank: ([], error) for rank in asked}
        mine, failure = send_objects(answers, self._device)[0]
        if failure is not None:
            raise on_all_ranks(failure)
        return mine

    def newest[T](self, items: Sequence[tuple[int, T]], limit: int) -> list[tuple[int, Delivered[T]]]:
        """Return the last `limit` (iteration, item) of all ranks, in order; they travel packed one by one."""
        counts = [row[0] for row in rows_of_ranks([len(items)], self._device)]
        later = sum(counts[dist.get_rank() + 1 :])
        wanted = min(len(items), max(0, limit - later))
        packed = [(made, pack(item)) for made, item in items[len(items) - wanted :]]
        sent: dict[int, list[tuple[int, bytes]]] = send_objects({0: packed}, self._device)
        joined: list[Any] = [list(chain.from_iterable(sent.values()))]
        with watchdog.doing("broadcast of kept records"):
            dist.broadcast_object_list(joined, src=0)
        return [(made, Delivered(partial(unpack, item))) for made, item in joined[0]]

    def readings(
        self, agreed: Sequence[tuple[int, tuple[Place, Lesson]]]
    ) -> Sequence[tuple[int, tuple[Place, Lesson]]]:
        """Return the (iteration, consensus on a real turn) of all ranks in order; they travel as rows."""
        rows = [(made, *self._turns.row(*placed)) for made, placed in agreed]
        table = torch.tensor(rows, dtype=torch.int32).reshape(-1, 1 + self._turns.columns)
        counts = [row[0] for row in rows_of_ranks([len(rows)], self._device)]
        joined = tables_of_ranks(table, counts, self._device).tolist()
        return [(made, self._turns.lesson(row)) for made, *row in joined]

    def to_writer[T](self, items: Sequence[T]) -> list[T]:
        """Hand items to the engine's first rank, which gets those of all of its ranks; others get none."""
        if self._ranks.group is None:
            return list(items)
        is_writer = self._ranks.part == 0
        shares: list[Any] = [None] * self._ranks.size
        with watchdog.doing("gathering an engine's records"):
            dist.gather_object(
                list(items),
                shares if is_writer else None,
                dst=dist.get_rank() - self._ranks.part,
                group=self._ranks.group,
            )
        return list(chain.from_iterable(shares)) if is_writer else []

    def together(self, write: Callable[[], None]) -> None:
        """Run `write` on every rank. What one raises, all raise."""
        together(write)
