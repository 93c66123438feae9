"""Finds a finished Hugging Face directory, and the settings that it was trained under.

A model can answer only the prompts it was trained on: with a different history length or turn cap, the task
is a different one. A model inside a run directory therefore uses that run's config.yaml; any other uses the
defaults, also beside a config.yaml of another program. Overrides are applied on top of either, and every
report names the settings that were used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from selfemo.common.errors import UserError
from selfemo.config.dtype import this_machine_has_gpu
from selfemo.config.engine_checks import engine_violations
from selfemo.config.layout import Layout
from selfemo.config.load import load_config, read_tree
from selfemo.config.schema import ModelConfig, RunConfig
from selfemo.models.architecture import Architecture, read_architecture
from selfemo.models.hub import fetch
from selfemo.records.directory import CONFIG_NAME, METRICS_NAME
from selfemo.rollout.api import Generator

DEFAULTS = "defaults (no run around the model)"
ASKED_DEFAULTS = "defaults (--defaults)"
FOREIGN_DEFAULTS = "defaults ({path} is another program's)"

RUN_KEYS = frozenset({"output_dir", "seed", "iterations", "model", "corpus", "selfplay", "reward"})
"""Keys that every run's config.yaml has had, and no other program's has together."""


@dataclass(frozen=True)
class FinishedModel:
    """A model directory that was examined, but not loaded."""

    path: Path
    architecture: Architecture = field(repr=False)
    config: RunConfig = field(repr=False)
    """Settings to use the model with."""
    settings_from: str
    """Source of the settings: a config.yaml, or DEFAULTS; overrides are not named here."""

    def check_weights(self) -> None:
        """Read the headers of the weights.

        Raises:
            UserError: a tensor is missing, damaged or of another shape.
        """
        from selfemo.weights.hf_directory import HfDirectory  # imported here, since it imports torch

        HfDirectory(self.path).check(self.architecture)

    def check_engine(self) -> None:
        """Check that an engine of one process can generate with the model, as a run checks its own.

        Raises:
            UserError: it is too long for the engine's cache, or its heads have a size without a kernel.
        """
        rollout = replace(self.config.rollout, tensor_parallel=1)
        config, on_cpu = replace(self.config, rollout=rollout), not this_machine_has_gpu()
        if problems := list(engine_violations(config, Layout(), self.architecture, on_cpu)):
            raise UserError(f"{self.path}: " + "; ".join(problems))

    def prompt_settings(self) -> dict[str, int | float | str]:
        """Return the settings that decide prompts and answers, by field of the configuration."""
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
    """Makes generators for finished models; implemented by selfemo.inference.engines and by tests."""

    def generator(self, model: FinishedModel) -> Generator:
        """Make a generator under this model's weights and settings."""
        ...


def find_model(
    path: Path, overrides: Sequence[str] = (), config_file: Path | None = None, defaults: bool = False
) -> FinishedModel:
    """Examine a model directory: its architecture, and the settings of the run around it.

    Args:
        path: the directory, or a name on the hub, which is fetched.
        overrides: such as "corpus.history_turns=2", on top of the run's settings or the defaults.
        config_file: settings of the run that the model comes from, if the model is not inside its directory.
        defaults: take the defaults, whatever run is around the model.

    Raises:
        UserError: no such directory, an unsupported model, or a setting that does not fit.
    """
    path = fetch(str(path))
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory; expected a Hugging Face model directory, such as runs/demo/model"
        )
    architecture = read_architecture(path)
    stored = config_file or path.resolve().parent / CONFIG_NAME
    settings_from = ASKED_DEFAULTS if defaults else DEFAULTS
    if stored.is_file() and not defaults:
        if config_file or is_run_config(stored):
            return _fitting(
                FinishedModel(path, architecture, load_config(stored, overrides), _readable(stored))
            )
        settings_from = FOREIGN_DEFAULTS.format(path=_readable(stored))
    implied = [
        f"model.path={json.dumps(str(path))}",  # quoted: a directory may be called 7
        f"model.max_length={min(ModelConfig().max_length, architecture.max_position_embeddings)}",
        f"rollout.dtype={'bfloat16' if architecture.dtype == 'bfloat16' else 'float32'}",
    ]
    return _fitting(
        FinishedModel(path, architecture, load_config(None, [*implied, *overrides]), settings_from)
    )


def is_run_config(path: Path) -> bool:
    """Tell whether a config.yaml holds the settings of a run: it names what every run has.

    A file that cannot be read as YAML counts as a run's if the run's records lie beside it.
    """
    try:
        return read_tree(path).keys() >= RUN_KEYS
    except UserError:
        return (path.parent / METRICS_NAME).exists()


def _fitting(model: FinishedModel) -> FinishedModel:
    """Return the model if it knows as many positions as its settings ask for."""
    longest, limit = model.config.model.max_length, model.architecture.max_position_embeddings
    if longest > limit:
        raise UserError(
            f"{model.path}: model.max_length={longest} (from {model.settings_from}, or an override) is above "
            f"the {limit} positions that the model knows: lower it"
        )
    return model


def _readable(path: Path) -> str:
    """Shorten a path to one from the working directory, if it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
