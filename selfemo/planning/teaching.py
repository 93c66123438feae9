"""Counts what a teacher reads in a run: turns without labels, where a round of self-play begins.

An iteration's figures carry its share of the round's reading, although the run reads all of it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfemo.config.schema import RunConfig


@dataclass(frozen=True)
class TeacherReading:
    """The teacher's reading of a whole run (selfemo.selfplay.teacher, selfemo.run.rounds)."""

    turns: int
    """Turns read where a round begins, each once in every view."""
    known_from: Literal["limit", "corpus", "guess"]
    """What their number is: selfplay.teacher_turns, the turns of the corpus, or a guess without either."""
    views: int
    rounds: int
    iterations: int
    syncs: int
    """Weight syncs beside those of the iterations."""

    @property
    def answers(self) -> int:
        """Greedy answers where a round begins, each to a prompt of its own."""
        return self.turns * self.views

    @property
    def rounds_per_iteration(self) -> float:
        """Share of a round's reading that an iteration carries."""
        return self.rounds / self.iterations

    @property
    def syncs_per_iteration(self) -> float:
        """Share of its further weight syncs that an iteration carries."""
        return self.syncs / self.iterations


def teacher_reading(config: RunConfig, unlabelled_turns: int | None = None) -> TeacherReading | None:
    """Count the teacher's reading; None if there is no teacher but the policy, or no iteration.

    Args:
        unlabelled_turns: those of the corpus; None if it is not at hand. Then selfplay.teacher_turns are
            planned, and if that is 0, as many turns as open the episodes of a round.
    """
    play, iterations = config.selfplay, config.iterations
    if play.teacher == "policy" or not iterations:
        return None
    known_from: Literal["limit", "corpus", "guess"]
    if unlabelled_turns is not None:
        turns, known_from = min(play.teacher_turns or unlabelled_turns, unlabelled_turns), "corpus"
    elif play.teacher_turns:
        turns, known_from = play.teacher_turns, "limit"
    else:
        turns, known_from = round(play.seeds_per_iteration * iterations / play.rounds), "guess"
    return TeacherReading(
        turns=turns,
        known_from=known_from,
        views=len(play.views),
        rounds=play.rounds,
        iterations=iterations,
        # An average is sent to the engines for its reading, and the policy after it; in the first round it
        # is the policy.
        syncs=2 * (play.rounds - 1) if play.teacher == "average" else 0,
    )
