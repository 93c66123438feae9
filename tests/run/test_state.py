"""Test that a checkpoint states the progress at a point from which the run can go on, not any later
count.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.config.schema import CheckpointConfig, RunConfig, SftConfig, TrainConfig
from selfemo.corpora.conversation import Corpus
from selfemo.megatron.parallel import RankLayout
from selfemo.megatron.step_stats import StepStats
from selfemo.records.directory import RunDirectory
from selfemo.records.manifest import Manifest, Position, Progress
from selfemo.run import state as module
from selfemo.run.checkpoints import Found
from selfemo.run.state import RunState
from tests.helpers.scripted import LABELS

BAD = StepStats(math.nan, 0.5, False, 9, 1e-5)
GOOD = StepStats(1.0, 0.5, True, 9, 1e-5)


class Written:
    """Takes the place of Checkpoints and keeps the manifests."""

    def __init__(self, *_: object, **__: object) -> None:
        self.manifests: list[Manifest] = []

    def save(self, manifest: Manifest, generators: object, wait: bool) -> None:
        self.manifests.append(manifest)

    def poll(self) -> None: ...

    def finish(self) -> None: ...

    def load(self, found: Found) -> None: ...

    def restore_generators(self, found: Found) -> None: ...


class Run:
    """Connects the state of a run to parts that only record their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.written, self.said, self.synced = Written(), [], []
        monkeypatch.setattr(module, "Checkpoints", lambda *_, **__: self.written)
        monkeypatch.setattr(module, "code_versions", dict)
        monkeypatch.setattr(module, "collect_rng", lambda device: {})
        train = TrainConfig(max_skipped_steps=3)
        config = RunConfig(sft=SftConfig(steps=9), train=train, checkpoint=CheckpointConfig(sft_every=0))
        world = SimpleNamespace(
            layout=RankLayout(Layout(), 0, 0, 0, 0, 0),
            device=SimpleNamespace(torch_device=torch.device("cpu")),
        )
        system: Any = SimpleNamespace(
            world=world,
            learner=SimpleNamespace(architecture=Position()),
            corpus=Corpus("toy", LABELS, ()),
            weight_sync=SimpleNamespace(sync=lambda version, verify: self.synced.append(version)),
        )
        journal: Any = SimpleNamespace(
            position=Position(),
            seconds={},
            phase=lambda name: nullcontext(),
            say=self.said.append,
            resume=lambda seconds: None,
        )
        flywheel: Any = SimpleNamespace(last_id=0, role_counts={})
        stop: Any = SimpleNamespace(check=lambda: None)
        self.state = RunState(config, system, RunDirectory(root), journal, flywheel, stop)


def test_a_checkpoint_says_what_was_true_where_the_run_can_go_on(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)
    assert run.state.count_sync() == 1
    run.state.count_step("SFT step 0", BAD, [])
    run.state.reached("sft", 1)
    run.state.count_step("SFT step 1", BAD, [])
    assert run.state.count_sync() == 2
    run.state.checkpoint(wait=True)  # a signal, in the middle of the next iteration
    assert [manifest.progress for manifest in run.written.manifests] == [Progress("sft", 1, 1, 1, 1)]
    run.state.reached("sft", 2)
    run.state.checkpoint(wait=True)
    assert run.written.manifests[-1].progress == Progress("sft", 2, 2, 2, 2)
    assert len(run.said) == 2


def test_a_resumed_run_goes_on_counting(monkeypatch, tmp_path):
    before = Run(monkeypatch, tmp_path)
    before.state.reached("sft", 1)
    before.state.checkpoint()
    manifest = before.written.manifests[0]
    run = Run(monkeypatch, tmp_path)
    run.state.load(
        Found(
            tmp_path, SimpleNamespace(**vars(manifest) | {"progress": Progress("self-play", 3, 5, 7, 2)}), ()
        )
    )
    assert run.synced == [5]
    assert run.state.count_sync() == 6
    with pytest.raises(UserError, match="3 in a row"):
        run.state.count_step("iteration 3", BAD, [])
    run.state.count_step("iteration 3", GOOD, [])
    run.state.reached("self-play", 4)
    assert run.state.progress == Progress("self-play", 4, 6, 8, 0)
