"""Plays each episode on the ranks of one engine, which then score it; turns are read in the same way.

An engine plays a contiguous share of the openings: requests, prompts, samples, readings, votes, rewards and
advantages are made by its own ranks, which share the work, and stay there. An episode's seeds derive from its
opening's number, so the result is that of one rank.

Engines do not wait for one another before the end. A request to stop, or the failure of one rank, reaches
the others between two of their engine calls (run/stop_rounds.py), so that all of them end alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import torch.distributed as dist

from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Reading
from selfemo.grpo.advantages import advantages_of, carrying
from selfemo.process import watchdog
from selfemo.process.collectives import raise_together, together
from selfemo.process.engine_ranks import EngineRanks
from selfemo.rewards.scoring import Rewards, ScoredGroup
from selfemo.rollout.api import Engine, Session
from selfemo.rollout.sessions import CallByCall
from selfemo.run.guards import check_rewards
from selfemo.run.kept_readings import KeepingGenerator, KeptReadings
from selfemo.run.stop_rounds import GuardedEngine, GuardedSession, OtherRankFailed, StopRounds
from selfemo.run.stoppable import Stopped, StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.records import Episode, Group, Opening
from selfemo.selfplay.teacher import read_turns


@dataclass(frozen=True)
class ScoredEpisodes:
    """The episodes of an iteration that an engine played, as one of its ranks has them."""

    groups: tuple[ScoredGroup, ...]
    """Of all of them, in order, with advantages."""
    own_episodes: tuple[Episode, ...]
    """Those that this rank answers for: it records and counts them, and sends their samples."""
    own_groups: tuple[ScoredGroup, ...]
    """Their groups."""

    @property
    def own_numbers(self) -> frozenset[int]:
        """Numbers of the own episodes in the iteration."""
        return frozenset(episode.opening.index for episode in self.own_episodes)


class EpisodesByEngine:
    """Plays and scores the episodes of an iteration on the engines of the run. Collective."""

    def __init__(
        self, play: SelfPlay, engine: Engine, ranks: EngineRanks, stop: StopRequest, lock_step: bool = False
    ) -> None:
        """Take the parts.

        Args:
            play: its dealing and generator are replaced by those of one engine.
            engine: this rank's, or its part of one that spans several.
            ranks: those that share it.
            lock_step: as rollout.lock_step.
        """
        self._play = replace(play, deal=ranks.deal, generator=GuardedEngine(engine))
        self._engine, self._ranks, self._stop, self._lock_step = engine, ranks, stop, lock_step
        self._rounds_group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None

    def of_engine[T](self, items: Sequence[T]) -> Sequence[T]:
        """Return this engine's share of an iteration's openings, or of their numbers."""
        return self._ranks.of_engine(items)

    def play(self, openings: Sequence[Opening], iteration: int) -> list[Episode]:
        """Play one episode per opening of this rank's engine, in order.

        Raises:
            Stopped: on every rank, if some rank was asked to stop.
            Exception: raised while an engine's episodes were played, on every rank alike; if several
                engines' ranks raise, the first one's.
        """
        self._stop.check()
        rounds = StopRounds(self._stop, self._ranks, self._rounds_group)
        played: list[Episode] = []
        raised: Exception | None = None
        try:
            with self._session() as session:
                guarded = GuardedSession(session, rounds, self._engine.max_length)
                played = self._play.play(openings, iteration, guarded)
            rounds.end()
        except Stopped:
            raise
        except OtherRankFailed:
            played = []
        except Exception as error:  # noqa: BLE001 - raised again below, on every rank
            rounds.fail()
            raised = error
        raise_together(raised)
        return played

    def read(
        self, openings: Sequence[Opening], iteration: int, kept: KeptReadings | None = None
    ) -> Sequence[Group]:
        """Let the teacher read the last turn of each opening; returns the groups that this rank answers for.

        Args:
            openings: the same on every rank, which together answer for all of them, in order.
            kept: where these readings may lie already, and are to be kept; None: not kept.

        Raises:
            Stopped: on every rank, if some rank was asked to stop.
            Exception: raised while an engine's turns were read, on every rank alike.
        """
        self._stop.check()
        mine, play = self.of_engine(openings), self._play
        if kept:
            play = replace(play, generator=KeepingGenerator(kept, play.generator, play.deal))
        return self._ranks.own(together(lambda: read_turns(play, mine, iteration)))

    def read_greedily(self, dialogues: Sequence[Sequence[Turn]]) -> list[Reading]:
        """Read each dialogue's last turn as it is; returns all readings on every rank. Raises as `read`."""
        self._stop.check()
        mine, role = self.of_engine(dialogues), self._play.recognizer
        own = self._ranks.own(together(lambda: role.read_last_turns(self._play.generator, mine)))
        shares = [own] * dist.get_world_size()
        if len(shares) > 1:
            with watchdog.doing("gathering of readings"):
                dist.all_gather_object(shares, own)
        return list(chain.from_iterable(shares))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        if self._lock_step:
            yield CallByCall(self._engine)
        else:
            with self._engine.session() as session:
                yield session

    def score(self, episodes: Sequence[Episode], rewards: Rewards, config: RunConfig) -> ScoredEpisodes:
        """Score the groups of this engine's episodes, and compute their advantages and weights.

        Raises:
            Exception: raised for a group of some engine, on every rank alike.
        """
        groups = [group for episode in episodes for group in episode.groups]

        def weighing(mine: Sequence[ScoredGroup]) -> list[tuple[tuple[float, ...], float]]:
            check_rewards(mine, config.reward)
            return advantages_of(mine, config.algorithm)

        def scoring() -> tuple[ScoredGroup, ...]:
            found = rewards.score_groups(groups, self._ranks.deal)
            return tuple(carrying(found, self._ranks.map_shares(weighing, found)))

        scored = together(scoring)
        own = {episode.opening.index for episode in self._ranks.own(episodes)}
        return ScoredEpisodes(
            groups=scored,
            own_episodes=tuple(episode for episode in episodes if episode.opening.index in own),
            own_groups=tuple(group for group in scored if group.group.episode in own),
        )
