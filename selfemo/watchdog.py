"""What this rank is doing, and a thread that ends the process when it takes longer than it may.

Collectives have deadlines of their own, but an engine call, a file system or a loop has none, and a collective's error does not say what
the rank was about. Here every phase and call has one, and whatever ends a rank can be told with rank, host, phase, iteration and call.

A process that is stopped (SIGSTOP) cannot end itself, and torchrun's SIGTERM does not reach it: its peers on the host kill it when they
end. One that holds Python's lock in native code cannot run this thread: faulthandler's timer, which needs no lock, ends it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

TICK_S = 0.5
LOCKED_S = 5.0
"""Beyond the deadline, until faulthandler ends a process whose watchdog cannot run."""
RARE_PHASES = ("setup", "checkpoint", "save")
"""Phases that have `startup_timeout_s`."""


@dataclass(frozen=True)
class Doing:
    """What a rank is about."""

    phase: str
    call: str
    iteration: int | None
    since: float
    deadline_s: float

    def __str__(self) -> str:
        where = f"phase {self.phase}" if self.phase else "between phases"
        iteration = "" if self.iteration is None else f", iteration {self.iteration}"
        return f"{where}{iteration}{f', {self.call}' if self.call else ''}"


@dataclass(frozen=True)
class Process:
    """One rank's process, so that nobody kills another that has got its number since."""

    host: str
    pid: int
    started: str
    """Start time in /proc, in clock ticks since boot."""


class Watchdog:
    """One rank's status and deadlines."""

    def __init__(self, rank: int, timeout_s: float, startup_timeout_s: float, tell: Callable[[str], None]) -> None:
        """`tell` prints one line where the user sees it."""
        self._rank, self._timeout_s, self._startup_timeout_s, self._tell = rank, timeout_s, startup_timeout_s, tell
        self._doing = Doing("setup", "", None, time.monotonic(), startup_timeout_s)
        self._limit: tuple[float, str] | None = None
        self._over = threading.Event()
        self.peers: tuple[Process, ...] = ()
        """The other ranks, once they are known."""
        self.on_tick: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to watch; ends with the process, or with `stop`."""
        threading.Thread(target=self._watch, name="selfemo-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase with a deadline of its own; where it raises, the status stays for the report."""
        self._enter(name)
        yield
        self._enter("")

    def call(self, name: str) -> None:
        """The phase has come to its next call, which has the whole deadline again."""
        self._doing = replace(self._doing, call=name, since=time.monotonic())

    def iteration(self, iteration: int) -> None:
        """The iteration that what follows belongs to."""
        self._doing = replace(self._doing, iteration=iteration)

    def limit(self, seconds: float, reason: str) -> None:
        """End the process in so many seconds, whatever it does."""
        self._limit = (time.monotonic() + seconds, reason)

    def status(self) -> str:
        """What this rank is about, in words."""
        return f"rank {self._rank} on {socket.gethostname()} in {self._doing}"

    def end(self, line: str) -> None:
        """Tell, and end this process and those of its peers on this host that are stopped. Does not return."""
        self._tell(f"selfemo: {line}")
        kill_stopped(self.peers)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _enter(self, phase: str) -> None:
        deadline_s = self._startup_timeout_s if phase in RARE_PHASES else self._timeout_s
        self._doing = Doing(phase, "", self._doing.iteration, time.monotonic(), deadline_s)

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            self.on_tick()
            doing, now = self._doing, time.monotonic()
            waited_s = now - doing.since
            if waited_s > doing.deadline_s:
                faulthandler.dump_traceback(all_threads=True)
                self.end(f"{self.status()}: not done within {doing.deadline_s:.0f} s; stacks are in the rank's log")
            if self._limit and now > self._limit[0]:
                self.end(f"{self.status()}: {self._limit[1]}")
            faulthandler.dump_traceback_later(doing.deadline_s - waited_s + LOCKED_S, exit=True)


def this_process() -> Process:
    """The identity that peers know this process by."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return Process(f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid(), _stat(os.getpid())[1])


def kill_stopped(peers: Iterable[Process]) -> None:
    """SIGKILL those of `peers` that are stopped, on this host."""
    here = this_process().host
    for peer in peers:
        with contextlib.suppress(OSError, IndexError):
            state, started = _stat(peer.pid)
            if peer.host == here and started == peer.started and state in "Tt":
                os.kill(peer.pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, str]:
    """(state letter, start time) of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()  # the name before may hold anything
    return fields[0], fields[19]
