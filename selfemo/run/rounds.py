"""Begins the rounds of self-play: moves the reference, and lets the teacher read turns without labels.

The iterations are cut into `selfplay.rounds` parts. Where one begins, the weights that KL refers to become
those of the policy (or a moving average of these), and the same weights teach: their consensus on real turns
without labels is recorded in the flywheel, and read from there by every later step and by a resume. Replies
that the round before kept are read in the same call, and teach if they are read as they were meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from selfemo.config.schema import RunConfig
from selfemo.flywheel.lessons import Reply
from selfemo.process.collectives import together
from selfemo.process.reduction import OverRanks
from selfemo.run.journal import Journal
from selfemo.run.parts import Parts
from selfemo.run.state import RunState
from selfemo.selfplay.openings import Place
from selfemo.selfplay.teacher import labels_to_teach, teacher_figures
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
        parts: Parts,
        state: RunState,
        journal: Journal,
        sync: Callable[[], None],
    ) -> None:
        """Take the parts of the run.

        Args:
            sync: sends the current weights to every engine.
        """
        self._config, self._system, self._state, self._journal = config, system, state, journal
        self._parts, self._sync = parts, sync

    def begin(self, iteration: int) -> None:
        """Begin the round if `iteration` is its first.

        The engines hold the policy's weights before and after.
        """
        if iteration != round_of(iteration, self._config).start:
            return
        if iteration > 0:
            self._move_reference()
        if self._config.selfplay.teacher != "policy":
            self._teach(iteration)

    def taught(self, iteration: int) -> Mapping[Place, tuple[str, ...]] | None:
        """Return the teacher's labels of real turns in this round; None if every group votes for itself."""
        if self._config.selfplay.teacher == "policy":
            return None
        return self._parts.flywheel.lessons.labels(since=round_of(iteration, self._config).start)

    def _move_reference(self) -> None:
        learner, state, play = self._system.learner, self._state, self._config.selfplay
        policy = learner.snapshot()
        if play.teacher == "average":
            for ours, old in zip(policy, state.reference, strict=True):
                ours.lerp_(old, play.teacher_memory)
        state.begin_round(policy)

    def _teach(self, iteration: int) -> None:
        settings, parts = self._config.selfplay, self._parts
        openings = parts.opening_pool.unlabelled(round_of(iteration, self._config), settings.teacher_turns)
        # In the first round, and without averaging, the teacher is the policy: the engines hold its weights.
        is_another = settings.teacher == "average" and iteration > 0
        if is_another:
            with self._system.learner.weights_of(self._state.reference):
                self._sync()
        version = self._state.progress.weight_version
        replies = self._unread_replies(iteration)
        first = settings.seeds_per_iteration + len(openings)
        written = [reply.opening(number) for number, reply in enumerate(replies, first)]
        with self._journal.phase("rollout"):
            kept = parts.kept_readings if iteration == 0 else None
            groups = parts.episodes.read([*openings, *written], iteration, kept)
        if is_another:
            self._sync()
        over = OverRanks(self._system.world.device.torch_device)
        turns = [group for group in groups if group.episode < first]
        align = settings.align_strength if settings.align_consensus else 0.0
        read = labels_to_teach(turns, parts.rewards.label_shares, align, over)
        meant = [replace(g, target=replies[g.episode - first].labels) for g in groups if g.episode >= first]
        scored = together(lambda: parts.rewards.score_groups([*read.groups, *meant]))
        parts.flywheel.teach(scored[: len(turns)], read, version)
        as_meant = parts.flywheel.read_back(scored[len(turns) :], version)
        figures = teacher_figures(read, self._system.corpus.labels, over)
        self._journal.taught(iteration, figures, len(replies), as_meant)

    def _unread_replies(self, iteration: int) -> list[Reply]:
        """List the replies of the round before this one, if the teacher reads replies."""
        if iteration == 0 or not self._config.teacher_reads_replies:
            return []
        return self._parts.flywheel.lessons.unread(since=round_of(iteration - 1, self._config).start)
