"""Generates a recorded turn again and compares the two.

A record holds the ids of each prompt, the seed of every sample and the sampling settings, so nothing else is
needed but the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfemo.flywheel.record import Record
from selfemo.rollout.api import GenerationRequest, Generator


@dataclass(frozen=True)
class ReplayedCandidate:
    """One candidate as recorded, and as generated again."""

    seed: int
    view: str
    recorded_ids: tuple[int, ...]
    replayed_ids: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Whether the same ids were sampled."""
        return self.recorded_ids == self.replayed_ids

    @property
    def first_difference(self) -> int | None:
        """Position of the first id that differs; None if all are equal."""
        if self.equal:
            return None
        pairs = enumerate(zip(self.recorded_ids, self.replayed_ids))
        return next((i for i, (a, b) in pairs if a != b), min(len(self.recorded_ids), len(self.replayed_ids)))


@dataclass(frozen=True)
class Replay:
    """A replayed record."""

    record: Record
    candidates: tuple[ReplayedCandidate, ...]

    @property
    def equal(self) -> bool:
        """Whether every candidate came out as recorded.

        Expected only under the weights of `record.weight_version`.
        """
        return all(candidate.equal for candidate in self.candidates)


def replay(record: Record, generator: Generator) -> Replay:
    """Sample the record's prompts again, each candidate's with its seed, in one call."""
    requests = [
        GenerationRequest(record.prompt_of(c), c.seed, record.max_tokens, record.temperature)
        for c in record.candidates
    ]
    completions = generator.generate(requests)
    pairs = zip(record.candidates, completions, strict=True)
    return Replay(
        record,
        tuple(
            ReplayedCandidate(c.seed, c.view, c.completion_ids, completion.token_ids)
            for c, completion in pairs
        ),
    )
