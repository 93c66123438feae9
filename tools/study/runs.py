"""Trains every model of a study, a few runs at a time, each in processes of its own.

A run is the ordinary `selfemo train`, so the command that started an interrupted study also resumes it:
finished runs are left alone and unfinished ones go on as any run does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.records.directory import CHECKPOINTS_NAME, SUMMARY_NAME, RunDirectory
from tools.study.schema import START, StudyPlan, Variant
from tools.study.tensors import keep_once

LOG_LINES = 5


@dataclass(frozen=True)
class StudyRun:
    """One model to train and to ask."""

    seed: int
    variant: str
    directory: Path
    """Of the run. An untrained variant has the start's."""
    settings: tuple[str, ...]
    """Arguments of `selfemo train`."""
    share: float | None = None
    """Its labelled share in a study of several; else None."""
    views: tuple[str, ...] = ()
    """Views in which the model is asked besides; see `Variant.views`."""
    votes: int = 0
    """Answers that it samples per turn; see `StudyPlan.votes`."""
    untrained: bool = False
    """Whether it is the start's model, whose views vote."""

    @property
    def model(self) -> Path:
        """The trained model, once the run is complete."""
        return self.directory / "model"

    @property
    def start_model(self) -> Path:
        """The model of its draw's start."""
        return self.directory.parent / START / "model"

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended well."""
        return (self.directory / SUMMARY_NAME).is_file()

    @property
    def has_model(self) -> bool:
        """Whether the model is here; of a run that came with records alone it is not."""
        return self.model.is_dir()

    @property
    def trained_as(self) -> str:
        """Digest of a complete run's summary: another digest once the run is trained again."""
        return hashlib.sha256((self.directory / SUMMARY_NAME).read_bytes()).hexdigest()[:16]

    @property
    def minutes(self) -> float:
        """CPU minutes that a complete run took: its seconds times its processes."""
        summary = json.loads((self.directory / SUMMARY_NAME).read_bytes())
        return float(summary["seconds"]["total"] * summary["world_size"] / 60)


def starts(plan: StudyPlan, study_file: Path, output: Path) -> list[StudyRun]:
    """List the SFT run of every labelled share and seed."""
    return [
        _written_out(plan, study_file, run, None)
        for run in _runs(plan, output, [Variant(START, "the start")])
    ]


def continuations(plan: StudyPlan, study_file: Path, output: Path) -> list[StudyRun]:
    """List the run of every labelled share, trained variant and seed.

    A variant's seeds stand together, so that a study that is cut short has whole variants.
    """
    trained = [variant for variant in plan.variants if not variant.untrained]
    return [_written_out(plan, study_file, run, run.start_model) for run in _runs(plan, output, trained)]


def voters(plan: StudyPlan, output: Path) -> list[StudyRun]:
    """List the untrained variants of every labelled share and seed: the starts, asked in other views."""
    return [
        replace(run, directory=run.start_model.parent, votes=0, untrained=True)
        for run in _runs(plan, output, [variant for variant in plan.variants if variant.untrained])
    ]


def train_all(
    runs: Sequence[StudyRun], store: Path, processes: int, at_once: int, tell: Callable[[str], None]
) -> None:
    """Train the runs that are not complete yet.

    Args:
        store: directory of the models' tensors.
        processes: number of processes of each run.
        at_once: number of runs side by side.

    Raises:
        UserError: a run failed; names it, its status and its log. Runs already under way are finished first,
            others do not begin.
    """
    failed = threading.Event()

    def train(run: StudyRun) -> str:
        if failed.is_set():
            return ""
        failure = None
        try:
            failure = _train(run, store, processes, tell)
        finally:
            if failure != "":
                failed.set()
        return failure

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        failures = list(pool.map(train, runs))
    for run, failure in zip(runs, failures, strict=True):
        if failure:
            raise UserError(f"study run {run.directory}: {failure}")


def _runs(plan: StudyPlan, output: Path, variants: Sequence[Variant]) -> list[StudyRun]:
    """List every labelled share, variant and seed; `settings` are a variant's own overrides alone."""
    return [
        StudyRun(
            seed,
            variant.name,
            _directory(output, share, seed, variant.name),
            tuple(variant.overrides),
            share,
            tuple(variant.views),
            plan.votes_of(variant.name),
        )
        for share, seeds in plan.parts
        for variant in variants
        for seed in seeds
    ]


def _written_out(plan: StudyPlan, study_file: Path, run: StudyRun, start: Path | None) -> StudyRun:
    """Write out and check what a run is trained with.

    Args:
        start: the model that it continues; None for a start itself.
    """
    base = str(study_file.parent / plan.base)
    shared = plan.start if start is None else [*plan.self_play, f"model.path={start}", "sft.steps=0"]
    labelled = [] if run.share is None else [f"corpus.labelled_share={run.share}"]
    last = ["iterations=0"] if start is None else run.settings
    settings = [
        *plan.settings,
        *shared,
        *labelled,
        *last,
        f"seed={run.seed}",
        f"output_dir={run.directory}",
    ]
    # before the first run starts: check the settings, and that existing runs were made with them
    config = load_config(base, settings)
    if config.corpus.dev_share:
        raise UserError(
            f"{study_file}: corpus.dev_share={config.corpus.dev_share} draws another dev split for every "
            "seed, but a study asks all models about the same turns: give the corpus a dev split of its own"
        )
    RunDirectory.check(config)
    return replace(run, settings=("--config", base, *settings))


def _directory(output: Path, share: float | None, seed: int, name: str) -> Path:
    return part_directory(output, share) / f"seed-{seed}" / name


def part_directory(output: Path, share: float | None) -> Path:
    """Return the directory of a labelled share's runs and answers; `output` itself if there is one alone."""
    return output if share is None else output / f"share-{share:g}"


def answers_file(output: Path, share: float | None, split: str) -> Path:
    """Return the file of a labelled share's answers about a split."""
    return part_directory(output, share) / f"{split}.json"


def _train(run: StudyRun, store: Path, processes: int, tell: Callable[[str], None]) -> str:
    """Train a run to its end, and keep of it what is needed; return the error, or ""."""
    if not run.is_complete:
        tell(f"training {run.directory}")
        if failure := _launch(run, processes):
            return failure
        tell(f"finished {run.directory}")
    # of an earlier call too, which may have ended between the run's last line and this one;
    # the model is exported, and a checkpoint is several times as large
    shutil.rmtree(run.directory / CHECKPOINTS_NAME, ignore_errors=True)
    keep_once(run.model, store)
    return ""


def _launch(run: StudyRun, processes: int) -> str:
    """Run `selfemo train`; return the error, or ""."""
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
        return ""
    tail = " | ".join(log.read_text(encoding="utf-8").splitlines()[-LOG_LINES:])
    return f"ended with status {status}, see {log} ({tail})"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
