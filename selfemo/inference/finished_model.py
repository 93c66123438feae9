"""A finished Hugging Face directory together with the settings it was trained under.

A model reads the prompts it was trained on and no others: a different history length or turn cap is a different task. A model that
stands inside a run directory therefore brings that run's config.yaml; any other takes the defaults. Overrides go on top of either,
and what was used is part of every report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import ModelConfig, RunConfig
from selfemo.models.architecture import Architecture, read_architecture
from selfemo.records.directory import CONFIG_NAME
from selfemo.rollout.api import Generator

DEFAULTS = "defaults (no run around the model)"


@dataclass(frozen=True)
class FinishedModel:
    """A model directory that was looked at, but not loaded."""

    path: Path
    architecture: Architecture = field(repr=False)
    config: RunConfig = field(repr=False)
    """Settings to use the model with."""
    settings_from: str
    """Where they come from: a config.yaml, or DEFAULTS; overrides are not named here."""

    def check_weights(self) -> None:
        """Read the weights' headers; UserError where a tensor is missing, damaged or of another shape."""
        from selfemo.weights.hf_directory import HfDirectory  # imports torch

        HfDirectory(self.path).check(self.architecture)

    def prompt_settings(self) -> dict[str, int | float | str]:
        """What decides prompts and answers, by field of the configuration."""
        config = self.config
        return {
            "corpus.history_turns": config.corpus.history_turns,
            "corpus.max_turn_tokens": config.corpus.max_turn_tokens,
            "selfplay.max_answer_tokens": config.selfplay.max_answer_tokens,
            **(
                {"selfplay.max_thinking_tokens": config.selfplay.max_thinking_tokens}
                if config.selfplay.thinking
                else {}
            ),
            "selfplay.max_utterance_tokens": config.selfplay.max_utterance_tokens,
            "selfplay.temperature": config.selfplay.temperature,
            "rollout.dtype": config.rollout.dtype,
            "model.max_length": config.model.max_length,
        }


class Engines(Protocol):
    """Gives finished models a voice; selfemo.inference.engines does, and tests may."""

    def generator(self, model: FinishedModel) -> Generator:
        """A generator under this model's weights and settings."""
        ...


def find_model(path: Path, overrides: Sequence[str] = (), config_file: Path | None = None) -> FinishedModel:
    """Look at a model directory: its architecture, and the settings of the run around it.

    Args:
        overrides: such as "corpus.history_turns=2", on top of the run's settings or the defaults.
        config_file: settings of the run that the model comes from, where it does not stand in its directory.

    Raises:
        UserError: no such directory, an unsupported model, or a setting that does not fit.
    """
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory; expected a Hugging Face model directory, such as runs/demo/model"
        )
    architecture = read_architecture(path)
    stored = config_file or path.resolve().parent / CONFIG_NAME
    if stored.is_file():
        return FinishedModel(path, architecture, load_config(stored, overrides), _readable(stored))
    implied = [
        f"model.path={json.dumps(str(path))}",  # quoted: a directory may be called 7
        f"model.max_length={min(ModelConfig().max_length, architecture.max_position_embeddings)}",
        f"rollout.dtype={'bfloat16' if architecture.dtype == 'bfloat16' else 'float32'}",
    ]
    return FinishedModel(path, architecture, load_config(None, [*implied, *overrides]), DEFAULTS)


def _readable(path: Path) -> str:
    """The path from the working directory, where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
