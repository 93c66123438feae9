"""Test that the watchdog ends a phase that takes too long, names it, and ends stopped peers too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.process import watchdog
from selfemo.process.watchdog import Process, kill_stopped, this_process
from tests.helpers.watched import calls_told

ROOT = Path(__file__).resolve().parents[2]
HANGS = """
import sys, time
from selfemo.process import watchdog
watchdog.start(3, 1.0, 60.0, lambda line: print(line, flush=True))
with watchdog.phase("checkpoint"):
    time.sleep(2)  # may take longer than a call
watchdog.iteration(7)
with watchdog.phase("rollout"):
    for index in range(3):
        with watchdog.doing(f"engine call of {index} requests"):
            time.sleep(0.6)  # the phase exceeds its deadline, no call does
    with watchdog.doing("engine call of 3 requests"):
        for part in range(3):
            watchdog.advance(f"part {part}")
            time.sleep(0.6)
        watchdog.advance("engine call of 3 requests")
        HANG
"""


def run(hang: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANGS.replace("HANG", hang)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_call_that_takes_too_long_ends_the_process_with_rank_phase_iteration_and_call():
    result = run("time.sleep(100)")
    assert result.returncode == 1
    assert "rank 3 on " in result.stdout
    assert "in phase rollout, iteration 7, engine call of 3 requests: not done within 1 s" in result.stdout
    assert "in <module>" in result.stderr  # the stacks


@pytest.mark.long
def test_native_code_that_holds_the_lock_is_ended_too():
    result = run("import ctypes; ctypes.PyDLL(None).sleep(100)")
    assert result.returncode == 1
    assert "Timeout" in result.stderr


def test_a_failure_leaves_the_status_for_the_report():
    failing = (
        "sys.excepthook = lambda _, error, __: print(watchdog.status(error), flush=True)\n"
        "        raise ValueError"
    )
    assert run(failing).stdout.strip().endswith("in phase rollout, iteration 7, engine call of 3 requests")


def test_a_block_gives_its_call_back_to_the_block_around_it() -> None:
    with calls_told(), watchdog.phase("checkpoint"):
        with watchdog.doing("outer"):
            with watchdog.doing("inner"):
                assert watchdog.status().endswith("in phase checkpoint, inner")
                watchdog.advance("rest of inner")
                assert watchdog.status().endswith("in phase checkpoint, rest of inner")
            assert watchdog.status().endswith("in phase checkpoint, outer")
        assert watchdog.status().endswith("in phase checkpoint")


def _fail_on_the_way_out() -> None:
    with watchdog.phase("rollout"), watchdog.doing("outer"):
        try:
            with watchdog.doing("inner"):
                raise ValueError("the cause")
        except ValueError as error:
            assert watchdog.status().endswith("in phase rollout, iteration 7, outer")
            raise RuntimeError("raised on the way out") from error


def test_a_block_that_raises_gives_its_call_back_and_the_error_keeps_the_innermost() -> None:
    with calls_told():
        watchdog.iteration(7)
        with pytest.raises(RuntimeError) as caught:
            _fail_on_the_way_out()
        assert watchdog.status().endswith("in between phases, iteration 7")
        assert watchdog.status(caught.value).endswith("in phase rollout, iteration 7, inner")
        assert watchdog.status(KeyError()).endswith("in between phases, iteration 7")  # not the same failure


def test_a_later_failure_is_told_with_its_own_call() -> None:
    with calls_told():
        for name in ("first", "second"):
            with pytest.raises(ValueError) as caught, watchdog.doing(name):
                raise ValueError(name)
            assert watchdog.status(caught.value).endswith(f", {name}")


def test_nothing_is_watched_before_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_watchdog", None)
    with watchdog.phase("eval"), watchdog.doing("engine call of 3 requests"):
        watchdog.advance("part")
        watchdog.iteration(1)
        watchdog.limit(0.0, "at once")
        watchdog.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "selfemo-watchdog"]


def sleeper() -> tuple[subprocess.Popen[bytes], Process]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return child, replace(this_process(), pid=child.pid, started=started)


def test_only_stopped_peers_are_killed():
    running, peer = sleeper()
    stopped, other = sleeper()
    recycled, third = sleeper()
    os.kill(stopped.pid, signal.SIGSTOP)
    os.kill(recycled.pid, signal.SIGSTOP)
    while (
        Path(f"/proc/{stopped.pid}/stat").read_text().split()[2] != "T"
        or Path(f"/proc/{recycled.pid}/stat").read_text().split()[2] != "T"
    ):
        time.sleep(0.01)
    kill_stopped([peer, other, replace(third, started="1"), replace(third, host="elsewhere")])
    assert stopped.wait(timeout=30) == -signal.SIGKILL
    assert running.poll() is None
    assert recycled.poll() is None
    for child in (running, recycled):
        child.kill()
        child.wait()
