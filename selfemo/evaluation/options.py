"""Holds the options of `selfemo eval`, as plain values that need no heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfemo.common.errors import UserError

Scoring = Literal["generate", "likelihood"]
Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class EvaluationOptions:
    model: Path
    against: Path | None
    """A second model, for paired differences."""
    recognizer: Path | None
    """The frozen model that reads replies; None leaves expression out."""
    overrides: tuple[str, ...]
    """Changes to every model's settings, such as "corpus.history_turns=2"."""
    corpus: str
    """Name or path; empty for the corpus of the model's run."""
    split: Split
    limit: int
    """Evaluate only the first turns of the split, so many; 0 for all."""
    scoring: Scoring
    votes: int
    """Sampled answers per turn, from which calibration is computed if scoring is "generate". 0 leaves
    calibration out.
    """
    seed: int
    """Seed of sampling, of views and of resampling."""
    views: tuple[str, ...] = ()
    """Views that vote on each turn, beside the plain reading; empty for none."""
    defaults: bool = False
    """Take the defaults as the models' settings, whatever run is around them."""

    def check(self) -> None:
        """Raise UserError for options that do not go together."""
        if self.votes == 1:
            raise UserError(
                "--votes 1: a single answer votes for itself; expected 2 or more, or 0 to leave "
                "calibration out"
            )
        evaluated = {path.resolve() for path in (self.model, self.against) if path is not None}
        if self.recognizer is not None and self.recognizer.resolve() in evaluated:
            raise UserError(
                f"--recognizer {self.recognizer}: is an evaluated model, which may read its own "
                "private code; "
                "name a frozen one, such as the SFT model"
            )
