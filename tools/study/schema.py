"""Defines a study's plan: what is trained, from which start, with which labels, and what is compared."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")
START = "start"
"""Name of the shared SFT model among the variants."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)]
LabelledShare = Annotated[float, Field(gt=0, le=1)]
Minutes = Annotated[float, Field(gt=0)]
Reader = Literal["own_start", "next_start", "none"]


@dataclass(frozen=True, config=STRICT)
class Variant:
    """One way to train, or to ask."""

    name: Name
    says: str
    """One sentence for the table."""
    overrides: list[str] = field(default_factory=list)
    """Overrides on top of the base configuration and of `self_play`."""
    like: str = ""
    """Variant whose overrides come before these. That one is like no other itself."""
    views: list[str] = field(default_factory=list)
    """Views in which its model is asked besides, two or more: how far the answers agree becomes a figure."""
    untrained: bool = False
    """No training: the start's model answers by the vote of `views`."""
    minutes: Minutes | None = None
    """A run's CPU minutes, for --estimate until one has ended; None: those of `guess`."""


@dataclass(frozen=True, config=STRICT)
class Guess:
    """CPU minutes, for --estimate until the study has measured its own."""

    start: Minutes = 20.0
    """An SFT start."""
    run: Minutes = 10.0
    """A run of a variant."""
    ask: Minutes = 3.0
    """A model that is asked about one split."""


@dataclass(frozen=True, config=STRICT)
class StudyPlan:
    base: str
    """Configuration file of every run, relative to the study file's directory."""
    start: list[str]
    """Overrides of the SFT run that all variants of a seed share."""
    self_play: list[str]
    """Overrides of every run that continues the SFT run."""
    variants: Annotated[list[Variant], Field(min_length=1)]
    baselines: Annotated[list[Name], Field(min_length=1)]
    """Variants with which every other one is compared."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of a study with one share of labels, the configuration's own."""
    shares: dict[LabelledShare, list[int]] = field(default_factory=dict)
    """Or, for several: corpus.labelled_share, and the seeds at it. A seed's labelled dialogues at a smaller
    share are among those at a larger one."""
    settings: list[str] = field(default_factory=list)
    """Overrides of every run, the start included, before all others."""
    only: list[Name] = field(default_factory=list)
    """Variants that are in the study; empty: all."""
    adjust: dict[Name, list[str]] = field(default_factory=dict)
    """Further overrides of some variants, after their own: what a study changes of one that it extends. Those
    like them are not adjusted."""
    main: list[Name] = field(default_factory=list)
    """Variants of the main comparison: their differences from every baseline in accuracy and weighted F1 are
    corrected together (Holm)."""
    main_share: float | None = None
    """The labelled share of the main comparison and of the ablation figure; None: the first."""
    curve: list[Name] = field(default_factory=list)
    """Variants in the learning curve; empty: `main`."""
    processes: Annotated[int, Field(gt=0)] = 1
    """Processes per run; parallel.* must fit."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Models are compared on the first N turns of a split; 0 for all."""
    votes: Annotated[int, Field(ge=0)] = 0
    """Answers sampled per turn, from which calibration is computed; 0 leaves it out."""
    calibrated: list[Name] = field(default_factory=list)
    """Variants of which it is computed; empty: all that are trained, and the start."""
    reader: Reader = "own_start"
    """Who reads the replies that a model writes: the start that it continued, the start of the share's next
    seed (trained on other labels, so no judge in its own case), or nobody."""
    guess: Guess = field(default_factory=Guess)

    @property
    def parts(self) -> list[tuple[float | None, list[int]]]:
        """List each labelled share with its seeds; None is the configuration's own share."""
        return list(self.shares.items()) or [(None, self.seeds)]

    @property
    def names(self) -> list[str]:
        """Return the names of the start and of every variant, in order."""
        return [START, *(variant.name for variant in self.variants)]

    def votes_of(self, name: str) -> int:
        """Return how many answers a trained variant's model samples per turn."""
        return self.votes if not self.calibrated or name in self.calibrated else 0
