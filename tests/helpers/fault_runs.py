"""Launch small runs with faults, and compare two finished runs to the last bit."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from selfemo.records.directory import flywheel_files
from tests.helpers import forked

ROOT = forked.ROOT
CONFIG = "tests/faults/tiny.yaml"
LAYOUTS = {"TP2": ("parallel.tensor=2",), "DP2": ("parallel.distributed_optimizer=true",)}
"""Layouts of two processes each."""
GRACE_S = 30.0
"""Seconds between torchrun's SIGTERM and its SIGKILL."""
POLL_S = 0.1
TIMINGS = ("seconds",)
TIMED_EVENTS = ("phases",)
Rank = Callable[[list[str], list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Ended:
    """The end of a launch."""

    codes: list[int]
    """Exit status by rank; -9 for a kill."""
    output: str
    """Terminal output of its processes."""
    at: float
    """Time of the last process's end, as time.time()."""


class Launcher:
    """Runs `selfemo train` on a few processes, and ends them as torchrun does.

    After a failure the others get SIGTERM, then SIGKILL. tests/faults/test_torchrun.py has torchrun
    itself.
    """

    def __init__(self, logs: Path, rank: Rank | None = None) -> None:
        """Launch `rank(arguments, faults)` in each process; by default the command with its faults."""
        self._logs, self._launches, self._rank = logs, 0, rank or _rank

    def run(
        self, run: Path, *overrides: str, world_size: int = 2, faults: list[dict[str, Any]] | None = None
    ) -> Ended:
        """Run a launch from start to end."""
        self._launches += 1
        output = self._logs / f"{self._launches}.log"
        arguments = ["train", "--config", CONFIG, f"output_dir={run}", *overrides]
        world = {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            forked.start(
                self._rank,
                arguments,
                faults or [],
                environment={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                output=output,
            )
            for rank in range(world_size)
        ]
        ended_at = _wait(ranks)
        return Ended([rank.exitcode or 0 for rank in ranks], output.read_text(errors="replace"), ended_at)


def _rank(arguments: list[str], faults: list[dict[str, Any]]) -> None:
    from tests.faults.run_with_faults import main

    sys.argv = ["selfemo", *arguments]
    sys.exit(main(faults))


def _wait(ranks: list[ForkServerProcess]) -> float:
    """Wait for the processes; returns the time when the last of them ended."""
    deadline: float | None = None
    while alive := [rank for rank in ranks if rank.exitcode is None]:
        if deadline is None and any(rank.exitcode for rank in ranks):
            deadline = time.monotonic() + GRACE_S
            for rank in alive:
                rank.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for rank in alive:
                rank.kill()
        time.sleep(POLL_S)
    return time.time()


def finish(launcher: Launcher, run: Path, untouched: Path) -> Ended:
    """Give the same command again, to the end, and compare the bits."""
    ended = launcher.run(run, *LAYOUTS["TP2"])
    assert ended.codes == [0, 0], ended.output
    one, other = fingerprint(untouched), fingerprint(run)
    assert [name for name in {**one, **other} if one.get(name) != other.get(name)] == []
    return ended


def ends_in_time(launcher: Launcher, run: Path, fault: dict[str, Any], deadline_s: int) -> str:
    """Strike, and see every rank end within the deadline and ten seconds; returns the ranks' output."""
    ended = launcher.run(run, *LAYOUTS["TP2"], f"timeout_s={deadline_s}", faults=[fault])
    assert all(ended.codes), ended.output
    struck = float((run / "logs" / "struck").read_text())
    assert ended.at - struck < deadline_s + 10, ended.output
    told = "\n".join(line for line in ended.output.splitlines() if line.startswith("selfemo: rank "))
    assert "phase" in told, ended.output
    return told


def free_port() -> int:
    """Find a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fingerprint(run: Path) -> dict[str, str]:
    """Digest everything a finished run holds except times: equal digests mean equal runs."""
    last = sorted(run.glob("checkpoints/iteration-*"))[-1]
    found = {
        "export": digest((run / "model" / "model.safetensors").read_bytes()),
        "training dialogues": digest((run / "training_dialogues.json").read_bytes()),
        "samples": digest((run / "samples.jsonl").read_bytes()),
        "metrics": digest(
            json.dumps([without_timings(e) for e in _events(run) if e["event"] not in TIMED_EVENTS]).encode()
        ),
        "summary": digest(
            json.dumps(without_timings(json.loads((run / "summary.json").read_text()))).encode()
        ),
        "flywheel": digest("\n".join(map(_rows, flywheel_files(run))).encode()),
        "manifest": digest(json.dumps(_manifest(last)).encode()),
    }
    for path in sorted(last.glob("rng-*")):
        found[path.name] = digest(path.read_bytes())
    # Earlier rounds' are there only as long as a checkpoint needs them, so checkpoint.keep decides on those.
    *_, reference = sorted((run / "checkpoints").glob("reference*"))
    return found | tensors(last) | {f"{reference.name} {k}": v for k, v in tensors(reference).items()}


def tensors(checkpoint: Path) -> dict[str, str]:
    """Digest every tensor of a distributed checkpoint: weights and optimizer moments, assembled
    from shards, and the step.
    """
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    from selfemo.weights.torch_dist import read_common

    entries = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(e.size, dtype=e.properties.dtype)
        for name, e in entries.items()
        if isinstance(e, TensorStorageMetadata)
    }
    load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    found = {
        f"tensor {name}": digest(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in state.items()
    }
    common = read_common(checkpoint)
    return found | {"optimizer groups and step": digest(repr(common).encode())}


def without_timings(value: Any) -> Any:
    """Remove from JSON the values that a clock decides."""
    if isinstance(value, dict):
        timed = (*TIMINGS, "seconds_mean", "tokens_per_second", "output_dir", "metrics_bytes")
        return {name: without_timings(inner) for name, inner in value.items() if name not in timed}
    return [without_timings(inner) for inner in value] if isinstance(value, list) else value


def digest(content: bytes) -> str:
    """Shorten a digest for a table of differences."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _manifest(checkpoint: Path) -> Any:
    """Read a manifest without file names (metadata holds temporary ones) and without settings that
    change nothing.
    """
    content = json.loads((checkpoint / "manifest.json").read_text())["manifest"]
    return without_timings(
        {name: value for name, value in content.items() if name not in ("files", "reference", "config")}
    )


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _rows(path: Path) -> str:
    with closing(sqlite3.connect(path)) as store:
        return "\n".join(
            repr(store.execute(f"select * from {table}").fetchall())
            for table in ("records", "details", "totals", "label_set")
        )
