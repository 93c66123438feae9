"""Test that a second launch of a live run is refused on every rank and changes no byte.

The training itself is a stand-in here; tests/faults/test_second_launch.py has a real run in every phase.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfemo.process.run_lock import RunLock
from selfemo.records.directory import LOCK_NAME
from tests.commands.test_preflight import dry_run, everyday
from tests.helpers.fault_runs import Ended, Launcher


def _rank(arguments: list[str], faults: list[dict[str, Any]]) -> None:
    """Run `selfemo train`, whose training writes a line and then waits for permission to end."""

    def train(config: Any, run: Any, terminal: Any, signals: Any) -> None:
        if os.environ["RANK"] == "0":
            run.append_jsonl("metrics.jsonl", {"event": "sft"})
        print("trains", flush=True)
        while not (run.root.parent / "go").exists():
            time.sleep(0.05)

    sys.modules["selfemo.trainer"] = SimpleNamespace(train=train)  # type: ignore[assignment]
    sys.argv = ["selfemo", *arguments]
    from selfemo.commands.main import main

    main()


def snapshot(run: Path) -> dict[str, str]:
    """Digest every file of a run but the lock, whose heartbeats go on."""
    return {
        str(path.relative_to(run)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file() and path.name != LOCK_NAME
    }


def launch(launcher: Launcher, run: Path, ended: list[Ended]) -> threading.Thread:
    thread = threading.Thread(target=lambda: ended.append(launcher.run(run)))
    thread.start()
    return thread


def trains(run: Path) -> bool:
    logs = [run / "logs" / f"rank-{rank}.log" for rank in (0, 1)]
    with contextlib.suppress(FileNotFoundError):
        return all("trains" in log.read_text() for log in logs)
    return False


def test_a_second_launch_is_refused_on_every_rank_and_leaves_the_first_as_it_is(tmp_path):
    run, ended = tmp_path / "run", []
    first = launch(Launcher(tmp_path, _rank), run, ended)
    deadline = time.monotonic() + 120
    while not trains(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    before = snapshot(run)
    (tmp_path / "second").mkdir()
    second = Launcher(tmp_path / "second", _rank).run(run)
    assert snapshot(run) == before
    assert second.codes == [2, 2], second.output
    lines = [line for line in second.output.splitlines() if line.startswith("selfemo: ")]
    assert len(lines) == 1, second.output
    assert "holds this run: wait for its end" in lines[0]
    (tmp_path / "go").touch()
    first.join()
    assert ended[0].codes == [0, 0], ended[0].output
    assert snapshot(run) == before
    assert not (run / LOCK_NAME).exists()


def test_of_two_launches_at_once_one_trains_and_the_other_is_refused(tmp_path):
    run, ended = tmp_path / "run", []
    threads = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        threads.append(launch(Launcher(tmp_path / name, _rank), run, ended))
    deadline = time.monotonic() + 120
    while not ended and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ended[0].codes == [2, 2], ended[0].output
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join()
    assert ended[1].codes == [0, 0], ended[1].output
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        {"event": "sft"}
    ]


@pytest.mark.parametrize("gpu", [(), ("--gpu", "h100-80g")])
def test_a_dry_run_beside_a_live_run_says_so_and_changes_nothing(tmp_path, gpu):
    lock = RunLock.take(tmp_path / "run", print)
    try:
        before = (tmp_path / "run" / LOCK_NAME).read_bytes()[:200]
        result = dry_run(tmp_path, *everyday(*gpu))
        assert result.returncode == (0 if gpu else 2), result.stderr
        told = result.stdout if gpu else result.stderr
        assert f"a launch on {os.uname().nodename} (process {os.getpid()}, since " in told
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_NAME]
        assert (tmp_path / "run" / LOCK_NAME).read_bytes()[:200] == before
    finally:
        lock.release()
