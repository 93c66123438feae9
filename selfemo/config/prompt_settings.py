"""Collects the settings that a run's prompts and supervised examples depend on, out of several sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfemo.config.schema import CorpusConfig, RunConfig, SelfPlayConfig, SftConfig
from selfemo.config.types import ViewName


@dataclass(frozen=True)
class PromptSettings:
    """The settings that decide which prompts a run writes, and how long they may become."""

    corpus: CorpusConfig
    selfplay: SelfPlayConfig
    sft: SftConfig
    sft_views: tuple[ViewName, ...]
    """Views that supervised examples are shown in."""
    evaluation_split: Literal["dev", "test"]
    max_length: int
    """Longest sequence of the model, in tokens."""
    seed: int
    """Of the run."""


def prompt_settings(config: RunConfig) -> PromptSettings:
    """Take these settings from a run's configuration."""
    return PromptSettings(
        corpus=config.corpus,
        selfplay=config.selfplay,
        sft=config.sft,
        sft_views=config.sft_views,
        evaluation_split=config.evaluation.split,
        max_length=config.model.max_length,
        seed=config.seed,
    )
