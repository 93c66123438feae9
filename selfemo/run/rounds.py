"""Begins the rounds of self-play: moves the reference, and lets the teacher read turns without labels.

The iterations are cut into `selfplay.rounds` parts. Where one begins, the weights that KL refers to become
those of the policy (or a moving average of these), and the same weights teach: their consensus on real turns
without labels is recorded in the flywheel, and read from there by every later step and by a resume.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from selfemo.config.schema import RunConfig
from selfemo.flywheel.flywheel import Flywheel
from selfemo.process.dealing import map_over_ranks
from selfemo.rewards.scoring import Rewards
from selfemo.run.journal import Journal
from selfemo.run.state import RunState
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.teacher import labels_to_teach, read_turns
from selfemo.system import System


def round_of(iteration: int, config: RunConfig) -> range:
    """Return the iterations of the round that an iteration belongs to."""
    rounds, total = config.selfplay.rounds, config.iterations
    bounds = [total * i // rounds for i in range(rounds + 1)]
    return next(range(a, b) for a, b in pairwise(bounds) if a <= iteration < b)


class Rounds:
    """Moves the reference and asks the teacher where a round begins. Methods are collective."""

    def __init__(
        self,
        config: RunConfig,
        system: System,
        state: RunState,
        journal: Journal,
        sync: Callable[[], None],
    ) -> None:
        """Take the parts of the run.

        Args:
            sync: sends the current weights to every engine.
        """
        self._config, self._system, self._state, self._journal = config, system, state, journal
        self._sync = sync

    def begin(
        self, iteration: int, play: SelfPlay, pool: OpeningPool, flywheel: Flywheel, rewards: Rewards
    ) -> None:
        """Begin the round if `iteration` is its first.

        The engines hold the policy's weights before and after.
        """
        if iteration != round_of(iteration, self._config).start:
            return
        if iteration > 0:
            self._move_reference()
        if self._config.selfplay.teacher != "policy":
            self._teach(iteration, play, pool, flywheel, rewards)

    def _move_reference(self) -> None:
        learner, state, play = self._system.learner, self._state, self._config.selfplay
        policy = learner.snapshot()
        if play.teacher == "average":
            for ours, old in zip(policy, state.reference, strict=True):
                ours.lerp_(old, play.teacher_memory)
        state.begin_round(policy)

    def _teach(
        self, iteration: int, play: SelfPlay, pool: OpeningPool, flywheel: Flywheel, rewards: Rewards
    ) -> None:
        settings = self._config.selfplay
        openings = pool.unlabelled(round_of(iteration, self._config), settings.teacher_turns)
        # In the first round, and without averaging, the teacher is the policy: the engines hold its weights.
        is_another = settings.teacher == "average" and iteration > 0
        if is_another:
            with self._system.learner.weights_of(self._state.reference):
                self._sync()
        version = self._state.progress.weight_version
        with self._journal.phase("rollout"):
            groups = read_turns(play, openings, iteration)
        if is_another:
            self._sync()
        read = labels_to_teach(groups, rewards.label_shares, settings.align_consensus)
        scored = rewards.score_groups(read.groups, map_over_ranks)
        flywheel.teach(scored, read.labels, version)
        self._journal.taught(iteration, read)
