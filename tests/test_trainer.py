"""Test the order of a run's parts: a wrong one costs memory or correctness, and no figure shows it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfemo import system as assembly
from selfemo.config.load import load_config
from selfemo.megatron.learner import Learner
from selfemo.megatron.parallel import leave_parallel
from selfemo.megatron.step_stats import StepStats
from selfemo.process.stop import StopSignals
from selfemo.records.directory import RunDirectory
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.sync.sync import SyncReport
from selfemo.trainer import train
from tests.helpers.fault_runs import CONFIG, ROOT

SETTINGS = ["sft.steps=2", "sft.warmup_steps=0", "iterations=0", "evaluation.limit=2"]


class _Terminal:
    """A terminal that shows nothing."""

    def __init__(self, root: Path) -> None:
        self.log_path = root / "logs" / "rank-0.log"

    def say(self, text: str) -> None: ...
    def error(self, text: str) -> None: ...
    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None: ...

    @contextmanager
    def progress(self, stage: str, total: int) -> Iterator[Any]:
        yield SimpleNamespace(skip=lambda units: None, advance=lambda note: None)


def _events(root: str, stop_in_step: int) -> list[str]:
    """Run with everything real but the engine; returns the calls to engine and learner in order.

    `stop_in_step`: the SFT step, counted from 1, in which SIGTERM arrives; 0 for a run that nobody
    stops.
    """
    events: list[str] = []
    signals = StopSignals()

    class Engine:
        def __init__(
            self, model_dir: str, config: Any, max_length: int, stop_ids: Sequence[int], kind: str
        ) -> None:
            self.max_length = max_length

        def sleep(self) -> None:
            events.append("sleep")

        def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
            events.append("generate")
            return [Completion((5,), (-1.0,), True) for _ in requests]

    class Sync:
        def __init__(self, *parts: object) -> None: ...

        def sync(self, version: int, verify: bool = False) -> SyncReport:
            events.append("sync")
            return SyncReport(version, "direct", 0.1, 0, 0, verify, 0)

    class RecordedLearner(Learner):
        def sft_step(self, *batch: Any) -> StepStats:
            events.append("SFT step")
            if events.count("SFT step") == stop_in_step:
                signals.asked = signal.SIGTERM
            return super().sft_step(*batch)

    run, config = RunDirectory(Path(root)), load_config(ROOT / CONFIG, [*SETTINGS, f"output_dir={root}"])
    with pytest.MonkeyPatch.context() as patch:
        for name, part in {"RolloutEngine": Engine, "WeightSync": Sync, "Learner": RecordedLearner}.items():
            patch.setattr(assembly, name, part)
        try:
            train(config, run, _Terminal(run.root), signals)  # type: ignore[arg-type]
        finally:
            leave_parallel()
    return [event for event, _ in groupby(events)]


def test_the_engine_sleeps_through_sft_and_wakes_with_the_sync_after_it(distributed, tmp_path):
    """Check the order on which memory plans rely; `WeightSync.sync` wakes the engine."""
    (found,) = distributed(1, _events, str(tmp_path), 0)
    assert found == ["sync", "generate", "sleep", "SFT step", "sync", "generate"]


def test_a_resume_into_sft_puts_the_engine_to_sleep_when_it_has_proved_its_weights(distributed, tmp_path):
    (stopped,) = distributed(1, _events, str(tmp_path), 1)
    assert stopped == ["sync", "generate", "sleep", "SFT step"]
    (resumed,) = distributed(1, _events, str(tmp_path), 0)
    assert resumed == ["sync", "sleep", "SFT step", "sync", "generate"]


def test_the_exported_model_has_a_card_with_the_figures_of_the_run(distributed, tmp_path):
    distributed(1, _events, str(tmp_path), 0)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "| SFT | 0.000 ± 0.000 |" in card, "its engine answers nothing in the grammar"
    assert (tmp_path / "summary.json").is_file()
