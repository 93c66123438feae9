"""Trains every model of a study, a few runs at a time, each in processes of its own.

A run is the ordinary `selfemo train`, so the command that started an interrupted study also resumes it:
finished runs are left alone and unfinished ones go on as any run does.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.records.directory import SUMMARY_NAME, RunDirectory
from tools.study.plan import START, StudyPlan, Variant

LOG_LINES = 5


@dataclass(frozen=True)
class StudyRun:
    """One model to train."""

    seed: int
    variant: str
    directory: Path
    settings: tuple[str, ...]
    """Arguments of `selfemo train`."""

    @property
    def model(self) -> Path:
        """The trained model, once the run is complete."""
        return self.directory / "model"

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended well."""
        return (self.directory / SUMMARY_NAME).is_file()

    @property
    def trained_as(self) -> str:
        """Digest of a complete run's summary: another digest once the run is trained again."""
        return hashlib.sha256((self.directory / SUMMARY_NAME).read_bytes()).hexdigest()[:16]


def starts(plan: StudyPlan, study_file: Path, output: Path) -> list[StudyRun]:
    """List the SFT run of every seed."""
    return [_run(plan, study_file, output, seed, START, [*plan.start, "iterations=0"]) for seed in plan.seeds]


def continuations(plan: StudyPlan, study_file: Path, output: Path) -> list[StudyRun]:
    """List the run of every variant and seed.

    A variant's seeds stand together, so that a study that is cut short has whole variants.
    """
    return [
        _run(plan, study_file, output, seed, variant.name, _overrides(plan, output, seed, variant))
        for variant in plan.variants
        for seed in plan.seeds
    ]


def train_all(runs: Sequence[StudyRun], processes: int, at_once: int, tell: Callable[[str], None]) -> None:
    """Train the runs that are not complete yet.

    Args:
        processes: number of processes of each run.
        at_once: number of runs side by side.

    Raises:
        UserError: a run failed; names it, its status and its log. Runs already under way are finished first.
    """
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        for run, failure in zip(runs, pool.map(lambda run: _train(run, processes, tell), runs), strict=True):
            if failure:
                pool.shutdown(cancel_futures=True)
                raise UserError(f"study run {run.directory}: {failure}")


def _overrides(plan: StudyPlan, output: Path, seed: int, variant: Variant) -> list[str]:
    return [
        *plan.self_play,
        f"model.path={_directory(output, seed, START) / 'model'}",
        "sft.steps=0",
        *variant.overrides,
    ]


def _run(
    plan: StudyPlan, study_file: Path, output: Path, seed: int, name: str, overrides: Sequence[str]
) -> StudyRun:
    directory = _directory(output, seed, name)
    base = str(study_file.parent / plan.base)
    settings = [*overrides, f"seed={seed}", f"output_dir={directory}"]
    # before the first run starts: check the settings, and that existing runs were made with them
    RunDirectory.check(load_config(base, settings))
    return StudyRun(seed, name, directory, ("--config", base, *settings))


def _directory(output: Path, seed: int, name: str) -> Path:
    return output / f"seed-{seed}" / name


def _train(run: StudyRun, processes: int, tell: Callable[[str], None]) -> str:
    """Train a run to its end; return the error, or ""."""
    if run.is_complete:
        return ""
    tell(f"training {run.directory}")
    log = run.directory.parent / f"{run.variant}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "selfemo.commands.main", "train", *run.settings]
    if processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "--no-python",
        ]
        command = [*launcher, *command]
    environment = {**os.environ, "MASTER_PORT": str(_free_port())}
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if status == 0 and run.is_complete:
        tell(f"finished {run.directory}")
        return ""
    tail = " | ".join(log.read_text(encoding="utf-8").splitlines()[-LOG_LINES:])
    return f"ended with status {status}, see {log} ({tail})"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
