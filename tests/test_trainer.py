"""The order of a run's parts, where a wrong one costs memory or correctness and no figure shows it."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from selfemo import supervised_start as stage
from selfemo import trainer as module
from selfemo.config import RunConfig, SftConfig
from selfemo.state import Progress
from selfemo.trainer import Trainer


class Recorder:
    """A trainer whose parts only say when they were used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, progress: Progress) -> None:
        self.events: list[str] = []
        monkeypatch.setattr(stage, "SftExamples", lambda *_: SimpleNamespace(batch=lambda step, size: []))
        monkeypatch.setattr(module, "majority_baseline", lambda held_out: None)
        self.trainer = trainer = object.__new__(Trainer)
        trainer.config = RunConfig(sft=SftConfig(steps=2))
        trainer.held_out = []
        trainer.flywheel = SimpleNamespace(close=lambda: None, counts=None)
        trainer.state = SimpleNamespace(
            progress=progress, reached=self.reached, count_sync=lambda: 1, count_step=lambda *_: None, reference=[], save=lambda: None
        )
        trainer.system = SimpleNamespace(
            engine=SimpleNamespace(sleep=self.event("sleep")),
            weight_sync=SimpleNamespace(sync=self.event("sync")),
            learner=SimpleNamespace(
                sft_step=self.event("SFT step"),
                offload=lambda: None,
                snapshot=lambda: None,
                begin_stage=lambda: None,
                allocated=lambda reference: None,
            ),
            corpus=SimpleNamespace(split=lambda name: []),
            prompts=None,
        )
        trainer.journal = SimpleNamespace(
            stage=self.stage,
            phase=lambda name: self.stage(name, 0),
            sft_step=lambda step, stats: "",
            synced=lambda report: None,
            allocated=lambda figures: None,
            finish=lambda *_: None,
        )
        trainer.evaluate = self.event("evaluate")
        trainer.self_play = self.event("self-play")

    def event(self, name: str):
        return lambda *_: self.events.append(name)

    def reached(self, stage: str, step: int) -> None:
        self.trainer.state.progress = Progress(stage, step)

    @contextmanager
    def stage(self, name: str, total: int):
        yield SimpleNamespace(skip=lambda units: None, advance=lambda note: None)


TAIL = ["sleep", "SFT step", "sync", "evaluate", "self-play", "evaluate"]
"""From the second SFT step on."""


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(), ["sync", "evaluate", "sleep", "SFT step", *TAIL[1:]]),
        (Progress("sft", 1), TAIL),
    ],
    ids=["a new run", "a resume into SFT"],
)
def test_the_engine_sleeps_through_sft_and_wakes_with_the_sync_after_it(monkeypatch, progress, expected):
    """Memory plans count on it; `WeightSync.sync` wakes the engine."""
    recorder = Recorder(monkeypatch, progress)
    recorder.trainer.run()
    assert recorder.events == expected
