"""Test that a second launch changes no byte of a live run, in every phase of a real run.

The first run is stopped (SIGSTOP) in one phase after the other, so that nothing of its own changes meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from selfemo.process.run_lock import find_owner
from selfemo.records.directory import LOCK_NAME
from tests.helpers.fault_runs import LAYOUTS, Ended, Launcher, fingerprint

pytestmark = pytest.mark.faults
PHASES = [
    ("setup", 1),
    ("sync", 1),
    ("evaluation", 1),
    ("sft", 5),
    ("checkpoint-tensors", 1),
    ("checkpoint-commit", 1),
    ("sft", 20),
    ("rollout", 1),
    ("flywheel", 1),
    ("step", 2),
    ("metrics", 60),
    ("export", 1),
    ("summary", 1),
]
"""Points of tests/faults/run_with_faults.py, in the order of a run: before its first checkpoint and after."""
RANK_1 = "rank-1.log"
"""Log of the rank that is not stopped, but waits."""


def snapshot(run: Path) -> dict[str, str]:
    paths = (path for path in run.rglob("*") if path.is_file() and path.name not in (LOCK_NAME, RANK_1))
    return {str(path.relative_to(run)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in paths}


def wait_until_stopped(pid: int) -> None:
    """Wait until a process is stopped."""
    deadline = time.monotonic() + 600
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_second_launch_changes_nothing_in_any_phase(untouched, tmp_path):
    run, ended = tmp_path / "run", []
    faults = [{"at": at, "count": count, "rank": 0, "do": "stop"} for at, count in PHASES]
    (tmp_path / "first").mkdir()
    first = Launcher(tmp_path / "first")
    thread = threading.Thread(target=lambda: ended.append(first.run(run, *LAYOUTS["TP2"], faults=faults)))
    thread.start()
    while (owner := find_owner(run, print)) is None:
        assert thread.is_alive()
        time.sleep(0.2)
    launcher = Launcher(tmp_path)
    for phase in PHASES:
        wait_until_stopped(owner.pid)
        time.sleep(1.0)  # the writer of a checkpoint is a process of its own
        before = snapshot(run)
        second = launcher.run(run, *LAYOUTS["TP2"])
        assert (second.codes, snapshot(run)) == ([2, 2], before), (phase, second.output)
        assert f"(process {owner.pid}, since {owner.since}) holds this run" in second.output, phase
        os.kill(owner.pid, signal.SIGCONT)
    thread.join()
    assert ended[0].codes == [0, 0], ended[0].output
    assert fingerprint(run) == fingerprint(untouched)


@pytest.mark.parametrize("apart_s", [0.0, 1.0, 3.0])
def test_launches_a_moment_apart_give_one_run(untouched, tmp_path, apart_s):
    run, ended = tmp_path / "run", []
    threads = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        launcher = Launcher(tmp_path / name)

        def launch(launcher: Launcher = launcher) -> None:
            ended.append(launcher.run(run, *LAYOUTS["TP2"]))

        threads.append(threading.Thread(target=launch))
        threads[-1].start()
        time.sleep(apart_s)
    for thread in threads:
        thread.join()
    codes: list[Ended] = sorted(ended, key=lambda launch: launch.codes)
    assert [launch.codes for launch in codes] == [[0, 0], [2, 2]], [launch.output for launch in ended]
    assert fingerprint(run) == fingerprint(untouched)
