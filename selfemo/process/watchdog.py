"""Knows the work of this rank, and ends the process from a thread if the work takes longer than its deadline.

Collectives have deadlines of their own, but an engine call, a file system or a loop has none, and a
collective's error does not name the rank's work. Here every phase and call has a deadline, and whatever ends
a rank can be reported with rank, host, phase, iteration and call.

A process has one watchdog. `start` begins it; any module names its work with
`with watchdog.doing("tensors of iteration-000004"):`. If none was started
(evaluation, chat, tools), these functions do nothing.

A process that is stopped (SIGSTOP) cannot end itself, and torchrun's SIGTERM does not reach it: its peers on
the host kill it when they end. A process that holds Python's lock in native code cannot run this thread:
faulthandler's timer, which needs no lock, ends it.
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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

TICK_S = 0.5
LOCKED_S = 5.0
"""Seconds after the deadline at which faulthandler ends a process whose watchdog cannot run."""
RARE_PHASES = ("setup", "checkpoint", "save")
"""Phases whose deadline is `startup_timeout_s`."""


@dataclass(frozen=True)
class Doing:
    """The present work of a rank."""

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
    """Identity of one rank's process. Nobody kills another process that has got its number since."""

    host: str
    pid: int
    started: str
    """Start time in /proc, in clock ticks since boot."""


class Watchdog:
    """Status and deadlines of one rank. The functions of this module use the one of this process."""

    def __init__(
        self,
        rank: int,
        timeout_s: float,
        startup_timeout_s: float,
        tell: Callable[[str], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._rank, self._timeout_s, self._startup_timeout_s = rank, timeout_s, startup_timeout_s
        self._tell, self._on_tick = tell, on_tick
        self._doing = Doing("setup", "", None, time.monotonic(), startup_timeout_s)
        self._failed: tuple[BaseException, Doing] | None = None
        """The last exception raised, and the work of this rank then: the blocks that the exception leaves
        restore the call."""
        self._limit: tuple[float, str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="selfemo-watchdog", daemon=True)
        self.peers: tuple[Process, ...] = ()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. The thread has ended on return, so it cannot set faulthandler's timer again."""
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See the function `phase`."""
        self._enter(name)
        try:
            yield
        except BaseException as error:
            self._note(error)
            raise
        finally:
            self._enter("")

    @contextmanager
    def doing(self, call: str) -> Iterator[None]:
        """See the function `doing`."""
        before = self._doing.call
        self.call(call)
        try:
            yield
        except BaseException as error:
            self._note(error)
            raise
        finally:
            self.call(before)

    def call(self, name: str) -> None:
        """Set the call, which has the whole deadline from now."""
        self._doing = replace(self._doing, call=name, since=time.monotonic())

    def iteration(self, iteration: int) -> None:
        """See the function `iteration`."""
        self._doing = replace(self._doing, iteration=iteration)

    def limit(self, seconds: float, reason: str) -> None:
        """See the function `limit`."""
        self._limit = (time.monotonic() + seconds, reason)

    def status(self, error: BaseException | None = None) -> str:
        """See the function `status`."""
        doing = self._failed[1] if self._failed and self._failed[0] in _chain(error) else self._doing
        return f"rank {self._rank} on {socket.gethostname()} in {doing}"

    def _note(self, error: BaseException) -> None:
        if self._failed is None or self._failed[0] not in _chain(error):  # the innermost block knows most
            self._failed = (error, self._doing)

    def _enter(self, phase: str) -> None:
        deadline_s = self._startup_timeout_s if phase in RARE_PHASES else self._timeout_s
        self._doing = Doing(phase, "", self._doing.iteration, time.monotonic(), deadline_s)

    def _end(self, line: str) -> None:
        """Report the reason, and end this process and its peers on this host that are stopped.

        Does not return.
        """
        self._tell(f"selfemo: {line}")
        kill_stopped(self.peers)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            self._on_tick()
            doing, now = self._doing, time.monotonic()
            waited_s = now - doing.since
            if waited_s > doing.deadline_s:
                faulthandler.dump_traceback(all_threads=True)
                self._end(
                    f"{self.status()}: not done within {doing.deadline_s:.0f} s; stacks are in the rank's log"
                )
            if self._limit and now > self._limit[0]:
                self._end(f"{self.status()}: {self._limit[1]}")
            faulthandler.dump_traceback_later(doing.deadline_s - waited_s + LOCKED_S, exit=True)


_watchdog: Watchdog | None = None
"""The watchdog of this process, once `start` has begun it."""


def start(
    rank: int,
    timeout_s: float,
    startup_timeout_s: float,
    tell: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
) -> None:
    """Watch this process until `stop`, or until it ends.

    Args:
        timeout_s: deadline of a call, and of a phase outside its calls.
        startup_timeout_s: the same in RARE_PHASES.
        tell: prints one line where the user sees it.
        on_tick: called every TICK_S, on the watchdog's thread.
    """
    global _watchdog
    _watchdog = Watchdog(rank, timeout_s, startup_timeout_s, tell, on_tick)
    _watchdog.start()


def stop() -> None:
    """Stop watching. `status` and the peers stay known, for the report of a later failure."""
    if _watchdog:
        _watchdog.stop()


def phase(name: str) -> AbstractContextManager[None]:
    """Run a block as a phase, with a deadline of its own. Phases do not nest."""
    return _watchdog.phase(name) if _watchdog else nullcontext()


def doing(call: str) -> AbstractContextManager[None]:
    """Run a block as a call of the phase, with the whole deadline.

    Blocks nest: the call around it has the whole deadline again afterwards.
    """
    return _watchdog.doing(call) if _watchdog else nullcontext()


def advance(call: str) -> None:
    """Rename the call of the innermost `doing` block, with the whole deadline.

    For work whose parts are no blocks of code, such as the micro-batches of a schedule.
    """
    if _watchdog:
        _watchdog.call(call)


def iteration(number: int) -> None:
    """Set the iteration of the work that follows."""
    if _watchdog:
        _watchdog.iteration(number)


def limit(seconds: float, reason: str) -> None:
    """End the process after so many seconds, whatever it does."""
    if _watchdog:
        _watchdog.limit(seconds, reason)


def status(error: BaseException | None = None) -> str:
    """Describe the present work of this rank, or its work at the time when `error` was raised."""
    return _watchdog.status(error) if _watchdog else "a process without a watchdog"


def set_peers(peers: Iterable[Process]) -> None:
    """Set the other ranks of the run, once they are known."""
    if _watchdog:
        _watchdog.peers = tuple(peers)


def kill_stopped_peers() -> None:
    """SIGKILL the peers on this host that are stopped: torchrun's SIGTERM does not reach them."""
    if _watchdog:
        kill_stopped(_watchdog.peers)


def this_process() -> Process:
    """Return the identity by which peers know this process."""
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


def is_running(process: Process) -> bool:
    """Whether a process of this host and namespace runs, and not another one that got its number."""
    try:
        state, started = _stat(process.pid)
        return started == process.started and state not in "ZX"
    except (OSError, IndexError):
        return False


def _stat(pid: int) -> tuple[str, str]:
    """Read (state letter, start time) of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()  # the name before may hold anything
    return fields[0], fields[19]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and those it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
