"""Plays each episode on the ranks of one engine, and gathers the finished ones to every rank.

An engine plays a contiguous share of the openings: requests, prompts, samples, readings and votes are made
by its own ranks, which share the work. An episode's seeds derive from its opening's number, so the result is
that of one rank.

The ranks still meet before every engine call, to agree whether to stop (run/stoppable.py). A rank that
fails meets them there too, so that all of them end with its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist

from selfemo.common.errors import on_all_ranks
from selfemo.process import watchdog
from selfemo.process.dealing import Deal, one_by_one, over_group
from selfemo.rollout.api import Engine
from selfemo.rollout.replicas import OwnEngine
from selfemo.run.stoppable import GuardedGenerator, OtherRankFailed, Stopped, StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.records import Episode, Opening


class EpisodesByEngine:
    """Plays the episodes of an iteration on the engines of the run. Collective."""

    def __init__(self, play: SelfPlay, engine: Engine, tensor_parallel: int, stop: StopRequest) -> None:
        """Group the ranks by engine. Every rank calls it.

        Args:
            play: its generator and its dealing are replaced by those of one engine.
            engine: this rank's, or its part of one that spans `tensor_parallel` ranks.
        """
        self._engines = dist.get_world_size() // tensor_parallel
        self._mine, self._part = divmod(dist.get_rank(), tensor_parallel)
        self._stop = stop
        deal: Deal = one_by_one
        if tensor_parallel > 1:
            first = range(0, dist.get_world_size(), tensor_parallel)
            groups = [dist.new_group(list(range(rank, rank + tensor_parallel))) for rank in first]
            deal = over_group(groups[self._mine])
        generator = GuardedGenerator(OwnEngine(engine), stop)
        self._play = replace(play, generator=generator, deal=deal, asks_when_idle=True)

    def play(self, openings: Sequence[Opening], iteration: int) -> list[Episode]:
        """Play one episode per opening; returns all of them in order, on every rank.

        Raises:
            Stopped: on every rank, if some rank was asked to stop.
            Exception: raised while an engine's episodes were played, on every rank alike; if several
                engines' ranks raise, the first one's.
        """
        bounds = [len(openings) * i // self._engines for i in range(self._engines + 1)]
        played: list[Episode] = []
        raised: Exception | None = None
        try:
            played = self._play.play(openings[bounds[self._mine] : bounds[self._mine + 1]], iteration)
            self._stop.check()  # a rank that fails in its last turn meets the others here
        except Stopped:
            raise
        except OtherRankFailed:
            played = []
        except Exception as error:  # noqa: BLE001 - raised again below, on every rank
            self._stop.failed()
            played, raised = [], error
        return self._gather(played if self._part == 0 else [], raised)

    def _gather(self, played: list[Episode], raised: Exception | None) -> list[Episode]:
        shares = [(played, raised)] * dist.get_world_size()
        if len(shares) > 1:
            with watchdog.doing(f"gathering {len(played)} episodes of each engine"):
                dist.all_gather_object(shares, (played, raised))
        for _, failure in shares:
            if failure is not None:
                raise on_all_ranks(failure)
        return [episode for share, _ in shares for episode in share]
