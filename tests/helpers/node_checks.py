"""Check a finished run over two nodes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from selfemo.config.layout import layout_of
from selfemo.config.load import load_config
from selfemo.models.architecture import read_architecture
from selfemo.planning.sync import sync_bytes
from selfemo.planning.trainer_bytes import trainer_bytes
from tests.helpers.nodes import events
from tools.check_run import checks


def check_run(output: Path, processes: int) -> None:
    """Check the summary, and compare the recorded memory and sync with the plan of the layout over
    two nodes.
    """
    summary = json.loads((output / "summary.json").read_text())
    assert [name for name, passed in checks(summary) if not passed] == []
    assert summary["world_size"] == 2 * processes
    assert [event["iteration"] for event in events(output, "iteration")] == [0, 1, 2]
    config = load_config(output / "config.yaml")
    layout = layout_of(config, 2, processes)
    architecture = read_architecture(output / "model-initial")
    planned = sync_bytes(architecture, layout, config.rollout.dtype, config.train.dtype)
    for sync in events(output, "sync"):
        whole = planned.direct if sync["path"] == "direct" else planned.checkpoint
        assert sync["received_bytes"] * layout.data == whole
    memory = events(output, "memory")[-1]["ranks"]
    assert len(memory) == 2 * processes
    for rank in range(2 * processes):
        _, copy, stage = layout.coordinates(rank)
        expected = asdict(trainer_bytes(architecture, layout, stage, copy, config.train.dtype))
        held = memory[str(rank)]
        assert {kind: held[kind] for kind in expected} == expected, f"rank {rank}"
