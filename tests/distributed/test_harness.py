"""Test the test harness: results by rank, a rank that fails, dies or hangs, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed

from tests.helpers.distributed import ROOT, DistributedRunner, RankFailure


@dataclass(frozen=True)
class _Pair:
    left: int
    right: torch.Tensor


def _describe_rank(offset: int) -> tuple[int, float, str, int, int]:
    total = torch.tensor(float(torch.distributed.get_rank() + offset))
    torch.distributed.all_reduce(total)
    return (
        torch.distributed.get_rank(),
        total.item(),
        os.environ["LOCAL_RANK"],
        torch.get_num_threads(),
        os.getpid(),
    )


def _swap(pair: _Pair) -> _Pair:
    return _Pair(int(pair.right[0]), torch.tensor([pair.left]))


def _fail_on(rank: int, reason: str) -> None:
    if torch.distributed.get_rank() == rank:
        raise ArithmeticError(reason)
    torch.distributed.barrier()


def _exit_on(rank: int) -> None:
    if torch.distributed.get_rank() == rank:
        print("last words", flush=True)
        os._exit(7)
    torch.distributed.barrier()


def _sleep_on(rank: int) -> None:
    if torch.distributed.get_rank() == rank:
        time.sleep(600)


def _start_child() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def test_results_come_back_by_rank_from_long_lived_workers(distributed: DistributedRunner) -> None:
    first = distributed(2, _describe_rank, 10)
    assert [row[:4] for row in first] == [(0, 21.0, "0", 1), (1, 21.0, "1", 1)]
    again = distributed(2, _describe_rank, 0)
    assert [row[1] for row in again] == [1.0, 1.0]
    assert [row[4] for row in again] == [row[4] for row in first] == distributed.pids(2)
    assert os.getpid() not in distributed.pids(2)


def test_dataclasses_of_the_test_module_and_tensors_travel_both_ways(distributed: DistributedRunner) -> None:
    for swapped in distributed(2, _swap, _Pair(3, torch.tensor([5]))):
        assert isinstance(swapped, _Pair)
        assert (swapped.left, swapped.right.tolist()) == (5, [3])


def test_a_raising_rank_shows_its_traceback_and_the_next_call_works(distributed: DistributedRunner) -> None:
    before = distributed.pids(2)
    start = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        distributed(2, _fail_on, 1, "the seventh bucket", timeout_s=120)
    message = str(failure.value)
    assert "rank 1: Traceback" in message
    assert "ArithmeticError: the seventh bucket" in message
    assert "in _fail_on" in message
    assert "rank 0: Traceback" not in message  # the message has the cause, not the ranks that waited for it
    assert time.monotonic() - start < 60
    assert not any(_alive(pid) for pid in before)
    assert [row[1] for row in distributed(2, _describe_rank, 0)] == [1.0, 1.0]


def test_a_dying_rank_is_reported_with_its_status_and_output(distributed: DistributedRunner) -> None:
    with pytest.raises(RankFailure, match=r"rank 0: died with exit status 7(?s:.*)last words"):
        distributed(2, _exit_on, 0)


@pytest.mark.long
def test_a_hang_ends_at_the_timeout_and_names_the_rank_and_place(distributed: DistributedRunner) -> None:
    with pytest.raises(RankFailure, match=r"_sleep_on: rank 1 still running after 8 s(?s:.*)in _sleep_on"):
        distributed(2, _sleep_on, 1, timeout_s=8)
    assert distributed.pids(2) == []


def test_a_nested_function_is_refused(distributed: DistributedRunner) -> None:
    with pytest.raises(ValueError, match="module level"):
        distributed(2, lambda: None)


@pytest.mark.slow
def test_ranks_and_their_children_end_with_a_killed_session(tmp_path: Path) -> None:
    """Kill a test session.

    SIGKILL runs no atexit handler, so only the lifeline pipe can end the workers.
    """
    script = (
        "import importlib.util, os, signal, sys\n"
        "from tests.helpers.distributed import DistributedRunner\n"
        "from tests.distributed import test_harness\n"
        "runner = DistributedRunner()\n"
        "print(*runner(2, test_harness._start_child), *runner.pids(2), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    session = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300
    )
    pids = [int(word) for word in session.stdout.split()]
    assert session.returncode == -signal.SIGKILL
    assert len(pids) == 4
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
