"""Test that TensorBoard and W&B show each record of metrics.jsonl once, also after a resume."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig, TrackingConfig
from selfemo.run.scalars import GROUP_AXES, scalars_of
from selfemo.run.trackers import Tracking, WeightsAndBiases

RECORDS: list[dict[str, Any]] = [
    {"event": "sync", "version": 1, "seconds": 0.5, "path": "direct", "received_bytes": 7, "probed": True},
    {
        "event": "eval",
        "stage": "start",
        "accuracy": 0.25,
        "per_label_f1": {"joy": 0.5, "anger": 0.0},
        "confusion": [[1, 0, 2], [0, 1, 0]],
    },
    {"event": "phases", "ranks": {"0": [["setup", 1.0, 2.0]]}},
    {"event": "sft", "step": 0, "loss": 2.5, "grad_norm": 1.5, "tokens": 40},
    {"event": "sft", "step": 1, "loss": 2.25, "grad_norm": 1.25, "tokens": 42},
    {
        "event": "iteration",
        "iteration": 0,
        "reward": 0.5,
        "reward_alignment": 0.75,
        "siou_recognizer": 0.625,
        "completion_tokens_responder": 11.5,
        "kl": 0.125,
        "step_applied": False,
        "flywheel": {"kept": {"annotated": 3}, "dropped": {"low score": 2}},
        "seconds": {"rollout": 4.0},
    },
]
WRITER_TIMEOUT_S = 60
EXPECTED = {
    "sync/seconds": [(1, 0.5)],
    "sync/received_bytes": [(1, 7.0)],
    "sync/probed": [(1, 1.0)],
    "eval/accuracy": [(0, 0.25)],
    "eval/per_label_f1.joy": [(0, 0.5)],
    "eval/per_label_f1.anger": [(0, 0.0)],
    "sft/loss": [(0, 2.5), (1, 2.25)],
    "sft/grad_norm": [(0, 1.5), (1, 1.25)],
    "sft/tokens": [(0, 40.0), (1, 42.0)],
    "reward/reward": [(0, 0.5)],
    "reward/reward_alignment": [(0, 0.75)],
    "siou/siou_recognizer": [(0, 0.625)],
    "lengths/completion_tokens_responder": [(0, 11.5)],
    "policy/kl": [(0, 0.125)],
    "policy/step_applied": [(0, 0.0)],
    "flywheel/flywheel.kept.annotated": [(0, 3.0)],
    "flywheel/flywheel.dropped.low score": [(0, 2.0)],
    "seconds/seconds.rollout": [(0, 4.0)],
}


def record_run(metrics: Path, config: RunConfig, records: list[dict[str, Any]]) -> None:
    """Append and log records, as the journal does."""
    tracking = Tracking(metrics, config)
    for record in records:
        with metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        tracking.log(record)
    tracking.close()


def tensorboard_points(root: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(root / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_record_is_mapped_once_to_every_number_it_holds():
    points: dict[str, list[tuple[int, float]]] = {}
    for record in RECORDS:
        if scalars := scalars_of(record):
            for name, value in scalars.values.items():
                points.setdefault(name, []).append((scalars.step, value))
                assert GROUP_AXES[name.split("/")[0]] == scalars.event
    assert points == EXPECTED


def test_tensorboard_shows_every_record(tmp_path: Path):
    record_run(tmp_path / "metrics.jsonl", RunConfig(), RECORDS)
    assert tensorboard_points(tmp_path) == EXPECTED
    assert not (tmp_path / "wandb").exists()


def test_a_resumed_run_shows_what_metrics_jsonl_holds_and_nothing_twice(tmp_path: Path):
    """Resume a run that logged step 1 of SFT before it was killed.

    The file is cut to step 0 and step 1 is taken again.
    """
    metrics = tmp_path / "metrics.jsonl"
    record_run(metrics, RunConfig(), RECORDS[:4] + [RECORDS[4] | {"loss": 9.0}])
    metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:4]))
    record_run(metrics, RunConfig(), RECORDS[4:])
    assert tensorboard_points(tmp_path) == EXPECTED


@pytest.mark.long
def test_weights_and_biases_offline_shows_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    config = replace(RunConfig(), seed=41, tracking=TrackingConfig(wandb="offline", wandb_project="emotions"))
    run = tmp_path / "run"
    run.mkdir()
    record_run(run / "metrics.jsonl", config, RECORDS)
    deadline = time.monotonic() + WRITER_TIMEOUT_S
    while True:  # W&B writes from a process of its own, which may be late on a busy machine
        points, begun = wandb_content(run)
        if points == EXPECTED or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert points == EXPECTED
    assert begun is not None
    assert (begun.project, begun.display_name) == ("emotions", "run")
    assert {item.key: item.value_json for item in begun.config.update}["seed"] == "41"


@pytest.mark.long
def test_weights_and_biases_without_a_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"tracking\.wandb=online: Weights & Biases does not start \(.*login"):
        WeightsAndBiases(tmp_path, RunConfig(), "online")


def wandb_content(run: Path) -> tuple[dict[str, list[tuple[int, float]]], Any]:
    """Read points by name, and the run's own record, of the one offline run in a directory."""
    points: dict[str, list[tuple[int, float]]] = {}
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    begun = None
    for record in wandb_records(file.read_bytes()):
        if record.HasField("run"):
            begun = record.run
        if record.HasField("history"):
            row = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            (event,) = {"sft", "sync", "eval", "iteration"} & set(row)
            for name in (name for name in row if "/" in name):
                points.setdefault(name, []).append((row[event], row[name]))
    return points, begun


def wandb_records(content: bytes) -> Iterator[Any]:
    """Read the records of a .wandb file.

    It is a LevelDB log (32 KiB blocks; crc, length and type before each fragment) of protocol
    buffers.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    block, header = 32768, 7
    position, pending = header, b""  # the file begins with a header of its own
    while position + header <= len(content):
        if block - position % block < header:  # padding: a fragment's header does not cross blocks
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        pending += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):  # whole, or last fragment
            yield Record.FromString(pending)
            pending = b""


def test_a_stage_that_no_version_knows_has_no_place_on_the_axis():
    assert scalars_of({"event": "eval", "stage": "x\x1b", "accuracy": 0.5}) is None
