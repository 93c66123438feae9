"""Finds the weights that sampled a flywheel record, among those that a run left on disk, for a replay.

A record names its weight version. Version V of a run is the content of sync V. On disk are the weights of the
checkpoints of its iterations, the last ones as `model/`, and those that self-play began with, which a run
keeps as its reference. The last are sent after the last rollout, so the weights of a later iteration's
records are those of a checkpoint. A run keeps all of them with checkpoint.every=1 and a checkpoint.keep above
its iterations. Other versions are refused, since no comparison could come out equal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.common.printable import quote
from selfemo.inference.finished_model import FinishedModel, find_model
from selfemo.models.hub import local_directory
from selfemo.records.directory import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    INITIAL_MODEL_NAME,
    METRICS_NAME,
    MODEL_NAME,
)
from selfemo.records.reading import read_jsonl

CHECKPOINTS = f"{CHECKPOINTS_NAME}/iteration-*"
"""Checkpoints with weights that an engine was sent; a checkpoint made during SFT holds others."""
REFERENCE = f"{CHECKPOINTS_NAME}/reference"


@contextmanager
def weights_of(run_dir: Path, version: int, model: Path | None = None) -> Iterator[FinishedModel]:
    """Find the model with the weights of one version of a run, with the run's settings.

    Args:
        model: a directory that the user says holds them; its version cannot be checked.

    Raises:
        UserError: the version's weights are not on disk; names the versions that are.
    """
    settings = run_dir / CONFIG_NAME
    config_file = settings if settings.is_file() else None
    if model is not None:
        yield find_model(model, config_file=config_file)
        return
    on_disk = versions_on_disk(run_dir)
    if version not in on_disk:
        listed = ", ".join(f"{number} ({path})" for number, path in sorted(on_disk.items())) or "none"
        raise UserError(
            f"{run_dir}: weights of version {version} are not on disk, there are: {listed}; "
            "checkpoint.every=1 keeps those of a run's newest iterations (checkpoint.keep); "
            "weights that you have elsewhere are named with --model"
        )
    place = on_disk[version]
    if place.name == MODEL_NAME:
        yield find_model(place, config_file=config_file)
        return
    from selfemo.weights.convert import megatron_to_hf

    with tempfile.TemporaryDirectory(prefix="selfemo-replay-") as scratch:
        converted = Path(scratch) / MODEL_NAME
        megatron_to_hf(place, converted, lambda name, size: None, _companions(run_dir))
        yield find_model(converted, config_file=config_file)


def versions_on_disk(run_dir: Path) -> dict[int, Path]:
    """List the weight versions on disk: `model/` in preference to a checkpoint of the same version."""
    found: dict[int, Path] = {}
    first, last = _synced(run_dir / METRICS_NAME)
    if first is not None and (run_dir / REFERENCE).is_dir():
        found[first] = run_dir / REFERENCE
    for checkpoint in sorted(run_dir.glob(CHECKPOINTS)):
        version = _checkpoint_version(checkpoint)
        if version is not None:
            found[version] = checkpoint
    if last is not None and (run_dir / MODEL_NAME).is_dir():
        found[last] = run_dir / MODEL_NAME
    return found


def _checkpoint_version(checkpoint: Path) -> int | None:
    """Read the version stored beside the weights; None for a checkpoint that the trainer did not write."""
    from selfemo.weights.torch_dist import FORMAT_NAME, read_common

    if not (checkpoint / FORMAT_NAME).is_file():
        return None
    stored = read_common(checkpoint).get("common")
    version = stored.get("weight_version") if isinstance(stored, dict) else None
    return version if isinstance(version, int) else None


def _synced(metrics: Path) -> tuple[int | None, int | None]:
    """Find the versions of two syncs: the one that self-play began with, and the last that the run recorded.
    None for a sync that does not exist."""
    first: int | None = None
    last: int | None = None
    for event in read_jsonl(metrics, "event"):
        if event["event"] == "sync":
            version = event.get("version")
            if not isinstance(version, int):
                raise UserError(
                    f"{metrics}: a sync has version {quote(version)}, expected a number: "
                    "restore the file as the run wrote it"
                )
            last = version
        elif event["event"] == "eval" and event.get("stage") == "sft":
            first = last
    return first, last


def _companions(run_dir: Path) -> Path:
    """Find a directory with the model's config and tokenizer.

    The export, else the model initialised for the run, else the model it started from.
    """
    for name in (MODEL_NAME, INITIAL_MODEL_NAME):
        if (run_dir / name).is_dir():
            return run_dir / name
    from selfemo.config.load import load_config

    return local_directory(load_config(run_dir / CONFIG_NAME).model.path)
