"""Defines a run's directory: claimed by one configuration, written by rank 0, never half written.

JSON files are written under a temporary name and renamed. JSON-lines files are appended a whole line at a
time, and cut back to the length that a checkpoint names if a run resumes from it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError
from selfemo.common.files import replace_text
from selfemo.config.load import as_yaml, load_config
from selfemo.config.schema import RunConfig
from selfemo.records.inputs import INPUT_PATHS, INPUTS_NAME, same_inputs
from selfemo.records.manifest import CHECKPOINT_KINDS

CONFIG_NAME = "config.yaml"
SUMMARY_NAME = "summary.json"
METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.jsonl"
LOGS_NAME = "logs"
CHECKPOINTS_NAME = "checkpoints"
FLYWHEEL_NAME = "flywheel"
"""Directory of the flywheel: one file per engine."""
OLD_FLYWHEEL_NAME = "flywheel.sqlite"
"""The one file of runs that older versions made; it is read as well."""
MODEL_NAME = "model"
INITIAL_MODEL_NAME = "model-initial"
RESUMES_NAME = "resumes.jsonl"
TRAINING_DIALOGUES_NAME = "training_dialogues.json"
TENSORBOARD_NAME = "tensorboard"
WANDB_NAME = "wandb"
DUMP_NAME = "bad_batch"
LOCK_NAME = "run.lock"
"""There while a launch is alive (selfemo.process.run_lock), and after one that was killed."""
WRITTEN = (
    *(METRICS_NAME, SAMPLES_NAME, RESUMES_NAME, TRAINING_DIALOGUES_NAME, INPUTS_NAME),
    *(CHECKPOINTS_NAME, FLYWHEEL_NAME, OLD_FLYWHEEL_NAME, MODEL_NAME, INITIAL_MODEL_NAME),
    *(TENSORBOARD_NAME, WANDB_NAME, DUMP_NAME),
)
"""What a run writes beside its configuration, its logs, its lock and its summary."""
CHECKPOINT_NAME = re.compile(rf"({'|'.join(CHECKPOINT_KINDS)})-\d{{6,12}}")
CHANGEABLE = (
    "parallel.",
    "rollout.tensor_parallel",
    "rollout.max_logprob_gap",
    "rollout.max_mean_logprob_gap",
    "checkpoint.",
    "timeout_s",
    "startup_timeout_s",
    "tracking.",
)
"""Settings that may change while a run is unfinished: they decide how it runs, not what it computes."""
FIXED = ("parallel.distributed_optimizer",)
"""Exceptions to CHANGEABLE: a sharded optimizer is stored under other names than a whole one."""
PLACES = ("output_dir", "selfplay.teacher_cache", "train.frozen_cache_dir")
"""Settings that tell no two runs apart: a run is what its directory holds, wherever that lies, and what was
kept by other runs is what it would compute itself."""


class RunDirectory:
    """Paths and writers of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def claim(cls, config: RunConfig) -> RunDirectory:
        """Claim this configuration's directory; it is created if it does not exist.

        The caller holds its lock.

        An unfinished run of the same configuration stays as it is if it has a checkpoint to go on from, and
        is removed if it has none (its logs stay, and whatever no run writes): records of two attempts must
        not mix. A finished run stays as it is.

        Raises:
            UserError: the directory is not empty and holds another run, or cannot be written.
        """
        run = cls.check(config, is_locked=True)
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            if not run.is_complete:
                if not run.has_checkpoint:
                    run._remove_unfinished()
                run.write_text(CONFIG_NAME, as_yaml(config))
        except OSError as error:
            raise unwritable(run.root, error) from None
        return run

    @classmethod
    def check(cls, config: RunConfig, is_locked: bool = False) -> RunDirectory:
        """Check everything that `claim` checks, but write nothing.

        A model or corpus that lies elsewhere now, or is spelled otherwise, is the same if its content is.

        Args:
            is_locked: the caller holds the lock. If not, a launch that holds it may just have begun to write.
        """
        try:
            return cls._check(config, Path(config.output_dir), is_locked)
        except OSError as error:
            raise UserError(
                f"{config.output_dir}: cannot be read ({error.strerror}): choose another output_dir"
            ) from None

    @classmethod
    def _check(cls, config: RunConfig, root: Path, is_locked: bool) -> RunDirectory:
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: exists and is not a directory: choose another output_dir")
        run, stored = cls(root), root / CONFIG_NAME
        foreign = root.exists() and any(entry.name not in (LOGS_NAME, LOCK_NAME) for entry in root.iterdir())
        if foreign and (is_locked or not (root / LOCK_NAME).exists()) and (why := run._is_no_run()):
            raise UserError(f"{root}: not empty and not a run of selfemo ({why}): choose another output_dir")
        if stored.exists():
            changes = {
                name: (old, new)
                for name, old, new in config_changes(run.stored_config(), dataclasses.asdict(config))
                if name not in PLACES
            }
            paths = {name: change for name, change in changes.items() if name in INPUT_PATHS}
            same = set(same_inputs(root, paths, config))
            barred = [
                name
                for name in changes
                if name not in same and (run.is_complete or name in FIXED or not name.startswith(CHANGEABLE))
            ]
            if barred:
                raise UserError(
                    f"{root}: holds a run with another configuration "
                    f"(other {', '.join(barred)}; see {stored}): "
                    "choose another output_dir or remove it"
                )
        return run

    def stored_config(self) -> dict[str, Any]:
        """Read the configuration that the directory was claimed with."""
        return dataclasses.asdict(load_config(self.path(CONFIG_NAME)))

    @property
    def has_checkpoint(self) -> bool:
        """Whether an unfinished run has a checkpoint to go on from, good or damaged."""
        return any(CHECKPOINT_NAME.fullmatch(path.name) for path in self.path(CHECKPOINTS_NAME).glob("*-*"))

    @property
    def is_complete(self) -> bool:
        """Whether the run ended and its summary is written."""
        return (self.root / SUMMARY_NAME).exists()

    def _is_no_run(self) -> str:
        """Say why no launch has written this directory, which holds something; "" if one has."""
        stored = self.path(CONFIG_NAME)
        if not stored.exists():
            return f"no {CONFIG_NAME}"
        records = (METRICS_NAME, INPUTS_NAME, SUMMARY_NAME)
        if any(self.path(name).exists() for name in records) or any(self.path(LOGS_NAME).glob("rank-*.log")):
            return ""
        try:  # of a launch that was cut off at once, or of a project with files of its own
            is_own = stored.read_text(encoding="utf-8") == as_yaml(load_config(stored))
        except (UserError, UnicodeDecodeError):
            is_own = False
        return "" if is_own else f"its {CONFIG_NAME} is not one that a run writes"

    def _remove_unfinished(self) -> None:
        for entry in self.root.iterdir():
            if _is_of_a_run(entry.name):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def path(self, *parts: str) -> Path:
        """Join a path inside the run."""
        return self.root.joinpath(*parts)

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file under a temporary name, then rename it."""
        replace_text(self.path(name), text)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object, indented, with keys in the given order."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append_jsonl(self, name: str, *records: Mapping[str, Any]) -> None:
        """Append records to a JSON-lines file, one write for all of them."""
        with self.path(name).open("a", encoding="utf-8") as file:
            file.write(
                "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
            )


def _is_of_a_run(name: str) -> bool:
    """Whether a run writes an entry of this name, under its own or, while it is written, under another."""
    unfinished = tuple(f".{written}." for written in WRITTEN)
    return name in WRITTEN or name.startswith((*unfinished, f"{OLD_FLYWHEEL_NAME}-"))


def flywheel_file(root: Path, engine: int) -> Path:
    """Name the file that an engine's records go to."""
    return root / FLYWHEEL_NAME / f"engine-{engine:05d}.sqlite"


def flywheel_files(root: Path) -> list[Path]:
    """List the files of a run's flywheel; none if it has no flywheel."""
    old = root / OLD_FLYWHEEL_NAME
    return [*([old] if old.is_file() else []), *sorted((root / FLYWHEEL_NAME).glob("engine-*.sqlite"))]


def unwritable(path: Path, error: OSError) -> UserError:
    """Make the error for a run that cannot begin to write."""
    return UserError(
        f"{path}: cannot be written ({error.strerror}): make it writable, or choose another output_dir"
    )


def config_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old value, new value) of every setting that differs.

    A list equals a tuple of the same items, since JSON has only lists.
    """
    for name in {**before, **after}:
        old, new = (
            list(value) if isinstance(value, tuple) else value
            for value in (before.get(name), after.get(name))
        )
        if isinstance(old, dict) and isinstance(new, dict):
            yield from config_changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new
