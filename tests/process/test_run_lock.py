"""Test that one launch alone holds a run's directory, on file systems with locks and without."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.process import run_owner, watchdog
from selfemo.process.run_lock import RunLock, find_owner
from selfemo.process.run_owner import Owner
from selfemo.records.directory import LOCK_NAME

ROOT = Path(__file__).resolve().parents[2]
HOLDS = """
import os, sys, time
from pathlib import Path
from selfemo.process.run_lock import RunLock
lock = RunLock.take(Path(sys.argv[1]), print)
if "forks" in sys.argv and os.fork() == 0:  # as a checkpoint's writer, which may outlive the run
    os.setsid()
    print(f"child {os.getpid()}\\n", end="", flush=True)
    time.sleep(60)
    os._exit(0)
print("holds\\n", end="", flush=True)
time.sleep(60)
"""


def holder(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDS, str(root), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for expected in ("child", "holds") if "forks" in options else ("holds",):
        assert process.stdout.readline().startswith((expected, "child", "holds"))
    return process


def said(line: str) -> None:
    raise AssertionError(line)


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != LOCK_NAME}


def test_the_second_launch_learns_who_holds_the_run_and_since_when(tmp_path):
    first = holder(tmp_path)
    try:
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        before = content(tmp_path)
        since = find_owner(tmp_path, said).since
        told = f"a launch on {socket.gethostname()} (process {first.pid}, since {since}) holds this run"
        with pytest.raises(UserError) as refused:
            RunLock.take(tmp_path, said)
        assert told in str(refused.value)
        assert content(tmp_path) == before
    finally:
        first.kill()
        first.wait()


def test_a_launch_that_was_killed_holds_nothing_even_if_its_writer_lives(tmp_path):
    first = holder(tmp_path, "forks")
    first.kill()
    first.wait()
    assert (tmp_path / LOCK_NAME).exists()
    assert find_owner(tmp_path, said) is None
    RunLock.take(tmp_path, said).release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_record_names_its_launch_in_printable_words(tmp_path):
    """A run's directory may come from somebody else, with the lock that a killed launch left."""
    owner = Owner("node\x1b]0;x\x07", "m", 7, "8", "now\n", "a")
    (tmp_path / LOCK_NAME).write_text(json.dumps(asdict(owner)))
    assert str(run_owner.read_owner(tmp_path / LOCK_NAME)).isprintable()


def test_of_launches_at_the_same_time_one_gets_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_owner, "LEASE_S", 0.5)
    for flock in (fcntl.flock, no_flock):  # O_EXCL alone decides if there are no locks
        monkeypatch.setattr(fcntl, "flock", flock)
        taken: list[RunLock] = []
        refused: list[str] = []

        def launch(taken: list[RunLock] = taken, refused: list[str] = refused) -> None:
            try:
                taken.append(RunLock.take(tmp_path, said))
            except UserError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=launch) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (1, 5), refused
        assert all(f"(process {os.getpid()}, " in line for line in refused)
        taken[0].release()


def no_flock(file: object, kind: int) -> None:
    raise OSError(38, "Function not implemented")


def test_without_locks_the_owners_process_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_flock)
    first = holder(tmp_path)
    with pytest.raises(UserError, match=rf"process {first.pid}, "):
        RunLock.take(tmp_path, said)
    first.send_signal(signal.SIGSTOP)  # not dead
    assert find_owner(tmp_path, said).pid == first.pid
    first.kill()
    first.wait()
    RunLock.take(tmp_path, said).release()


def written_elsewhere(root: Path) -> Owner:
    here = watchdog.this_process()
    owner = Owner("node7", "another-boot pid:[1]", here.pid, here.started, "2026-11-29T03:00:00+00:00", "t")
    (root / LOCK_NAME).write_text(json.dumps(asdict(owner)))
    return owner


def test_a_launch_on_another_machine_is_alive_while_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(run_owner, "LEASE_S", 2.0)
    owner, over = written_elsewhere(tmp_path), threading.Event()

    def beat() -> None:
        for beats in range(1, 1000):
            if over.wait(0.3):
                return
            (tmp_path / LOCK_NAME).write_text(json.dumps(asdict(replace(owner, beats=beats))))

    thread = threading.Thread(target=beat)
    thread.start()
    told: list[str] = []
    try:
        with pytest.raises(UserError, match=r"a launch on node7 \(process \d+, since 2026-11-29T03:00:00"):
            RunLock.take(tmp_path, told.append)
        assert find_owner(tmp_path, told.append).host == "node7"
    finally:
        over.set()
        thread.join()
    assert "watching for up to 2 s whether a launch on node7" in told[0]
    RunLock.take(tmp_path, told.append).release()  # no beat within the lease: dead


def test_a_launch_that_lost_its_run_learns_it(tmp_path):
    lock = RunLock.take(tmp_path, said)
    assert lock.beat() == ""
    (tmp_path / LOCK_NAME).rename(tmp_path / "kept")
    assert "is gone: the run's directory was removed, moved or begun anew" in lock.beat()
    written_elsewhere(tmp_path)
    assert "was taken over by a launch on node7" in lock.beat()
    lock.release()
    assert (tmp_path / LOCK_NAME).exists(), "it is another's"


@pytest.mark.parametrize("found", [b"", b"\xff\xfe", b"[]", b'{"host": 1}'])
def test_a_lock_file_that_says_nothing_keeps_nobody_out(tmp_path, found, monkeypatch):
    monkeypatch.setattr(run_owner, "SETTLE_S", 0.2)
    (tmp_path / LOCK_NAME).write_bytes(found)
    RunLock.take(tmp_path, said).release()


def test_heartbeats_are_written_and_end_the_run_when_it_is_lost(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom selfemo.process import run_lock, watchdog\n"
        "run_lock.HEARTBEAT_S = 0.1\n"
        "watchdog.start(0, 60, 60, lambda line: print(line, flush=True))\n"
        "lock = run_lock.RunLock.take(Path(sys.argv[1]), print)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (found := find_owner(tmp_path, said)) is None or found.beats < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (tmp_path / LOCK_NAME).unlink()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{tmp_path / LOCK_NAME} is gone" in told
