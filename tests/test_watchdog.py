"""The watchdog ends what takes too long, says what that was, and takes stopped peers with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from selfemo.watchdog import Process, kill_stopped, this_process

ROOT = Path(__file__).resolve().parents[1]
HANGS = """
import sys, time
from selfemo.watchdog import Watchdog
watchdog = Watchdog(3, 1.0, 60.0, lambda line: print(line, flush=True))
watchdog.start()
with watchdog.phase("checkpoint"):
    time.sleep(2)  # may take longer than a call
watchdog.iteration(7)
with watchdog.phase("rollout"):
    for index in range(4):
        watchdog.call(f"engine call of {index} requests")
        time.sleep(0.6)  # the phase exceeds its deadline, no call does
    HANG
"""


def run(hang: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HANGS.replace("HANG", hang)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_call_that_takes_too_long_ends_the_process_with_rank_phase_iteration_and_call():
    result = run("time.sleep(100)")
    assert result.returncode == 1
    assert "rank 3 on " in result.stdout
    assert "in phase rollout, iteration 7, engine call of 3 requests: not done within 1 s" in result.stdout
    assert "in <module>" in result.stderr  # the stacks


def test_native_code_that_holds_the_lock_is_ended_too():
    result = run("import ctypes; ctypes.PyDLL(None).sleep(100)")
    assert result.returncode == 1
    assert "Timeout" in result.stderr


def test_a_failure_leaves_the_status_for_the_report():
    failing = "sys.excepthook = lambda *_: print(watchdog.status(), flush=True)\n    raise ValueError"
    assert run(failing).stdout.strip().endswith("in phase rollout, iteration 7, engine call of 3 requests")


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
        Path(f"/proc/{stopped.pid}/stat").read_text().split()[2] != "T" or Path(f"/proc/{recycled.pid}/stat").read_text().split()[2] != "T"
    ):
        time.sleep(0.01)
    kill_stopped([peer, other, replace(third, started="1"), replace(third, host="elsewhere")])
    assert stopped.wait(timeout=30) == -signal.SIGKILL
    assert running.poll() is None
    assert recycled.poll() is None
    for child in (running, recycled):
        child.kill()
        child.wait()
