"""Runs a function on every rank of a process group, with groups that live as long as the test
session.

One group per world size is started at its first use and shared by all tests; its ranks are forked
from a process that has imported what they need (forked.py). A test takes the `distributed` fixture
(tests/conftest.py):

    def _sum_of_ranks(offset: int) -> float:    # module level: it is sent as (module, name)
        value = torch.tensor(float(torch.distributed.get_rank() + offset))
        torch.distributed.all_reduce(value)
        return value.item()

    def test_every_rank_holds_the_sum(distributed):
        assert distributed(2, _sum_of_ranks, 10, timeout_s=60) == [21.0, 21.0]

On each rank the default gloo group exists, RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT are set as torchrun sets them, and torch has one thread. Arguments and results travel
pickled, by value. State outlives a call, as it would in one program: a function that initialises
Megatron's parallel_state destroys it again (never the default group), and a module-level variable
keeps its value. Where ranks need different arguments, pass a list and index it by rank.

A rank that raises fails the test with that rank's traceback; a call that exceeds `timeout_s` fails
with the ranks still running and where each of them is. Both end the group, and the next call starts
a new one.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.helpers import distributed_worker, forked

ROOT = forked.ROOT
START_TIMEOUT_S = 180.0
"""Seconds for importing torch, Megatron and vLLM on a busy machine and forming the group."""
GRACE_S = 2.0
"""Seconds after the first failure in which other ranks may report theirs.

Most of them wait for the failed one.
"""
LOG_TAIL_LINES = 60


class RankFailure(AssertionError):
    """A rank raised, died or hung; the message carries its traceback or stack."""


class DistributedRunner:
    """Runs functions behind the `distributed` fixture; keeps one worker group per world size."""

    def __init__(self) -> None:
        self._groups: dict[int, WorkerGroup] = {}

    def __call__(
        self, world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0
    ) -> list[Any]:
        """Run `function(*args)` on every rank of a gloo group of `world_size`.

        Returns the results by rank.

        Raises:
            RankFailure: a rank raised, died, or was still running after `timeout_s` seconds.
            ValueError: `function` is not at module level, so a worker could not find it.
        """
        __tracebackhide__ = True
        if "<" in function.__qualname__:
            raise ValueError(
                f"{function.__qualname__}: a worker finds a function by name, "
                "so it must stand at module level"
            )
        group = self._groups.get(world_size) or WorkerGroup(world_size)
        self._groups[world_size] = group
        try:
            return group.call(function, args, timeout_s)
        except BaseException:  # KeyboardInterrupt too: ranks in the middle of a call cannot serve another
            self._groups.pop(world_size).close()
            raise

    def pids(self, world_size: int) -> list[int]:
        """List the process ids of the live group of `world_size` by rank; empty if there is none."""
        return self._groups[world_size].pids if world_size in self._groups else []

    def close(self) -> None:
        while self._groups:
            self._groups.popitem()[1].close()


class WorkerGroup:
    """`world_size` worker processes that have joined one gloo group."""

    def __init__(self, world_size: int) -> None:
        self._log_dir = tempfile.TemporaryDirectory(prefix="selfemo-ranks-")
        lifeline, self._lifeline = Pipe(duplex=False)
        port = _free_port()
        self._pipes: list[Connection] = []
        self._processes: list[ForkServerProcess] = []
        for rank in range(world_size):
            ours, theirs = Pipe()
            environment = _torchrun_environment(rank, world_size, port)
            with theirs:
                served = (distributed_worker.serve, theirs, lifeline)
                self._processes.append(forked.start(*served, environment=environment, output=self._log(rank)))
            self._pipes.append(ours)
        lifeline.close()
        try:
            self._collect("forming the group", START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> list[Any]:
        __tracebackhide__ = True
        path = inspect.getfile(function)
        message = pickle.dumps(
            (function.__module__, str(Path(path).resolve()), function.__qualname__, pickle.dumps(args))
        )
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(message)
            except BrokenPipeError:
                raise RankFailure(
                    f"rank {rank} {self._ending(rank)} before {function.__qualname__} began"
                ) from None
        return self._collect(function.__qualname__, timeout_s)

    def close(self) -> None:
        """Kill every rank with its children, and wait for their end."""
        self._lifeline.close()
        for process, pid in zip(self._processes, self.pids, strict=True):
            with contextlib.suppress(ProcessLookupError):  # the process group is empty
                os.killpg(pid, signal.SIGKILL)
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._log_dir.cleanup()

    def _collect(self, what: str, timeout_s: float) -> list[Any]:
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout_s
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        results: dict[int, Any] = {}
        failures: list[str] = []
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    succeeded, payload = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    succeeded, payload = (
                        False,
                        f"{self._ending(rank)}; the end of its output:\n{self._log_tail(rank)}",
                    )
                if succeeded:
                    results[rank] = pickle.loads(payload)
                else:
                    failures.append(f"rank {rank}: {payload}")
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        if failures:
            names = [str(rank) for rank in sorted(waiting.values())]
            others = (
                f"\nstill running then, so probably waiting for it: rank {', '.join(names)}" if names else ""
            )
            raise RankFailure(f"{what} failed on {len(failures)} rank(s)\n" + "\n".join(failures) + others)
        if waiting:
            raise RankFailure(self._hang_report(what, timeout_s, sorted(waiting.values())))
        return [results[rank] for rank in range(len(self._pipes))]

    def _hang_report(self, what: str, timeout_s: float, ranks: list[int]) -> str:
        for rank in ranks:
            os.kill(self.pids[rank], signal.SIGUSR1)  # faulthandler writes every thread's stack to the log
        time.sleep(0.5)
        stacks = "\n".join(
            f"rank {rank}, end of its output and stack:\n{self._log_tail(rank)}" for rank in ranks
        )
        return f"{what}: rank {', '.join(map(str, ranks))} still running after {timeout_s:g} s\n{stacks}"

    def _log(self, rank: int) -> Path:
        return Path(self._log_dir.name) / f"rank{rank}.log"

    def _log_tail(self, rank: int) -> str:
        return "\n".join(self._log(rank).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def _ending(self, rank: int) -> str:
        self._processes[rank].join(timeout=10)
        return f"died with exit status {self._processes[rank].exitcode}"


def _torchrun_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",  # an unresolvable host name would cost gloo seconds or the connection
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
