"""Set up one fuzz run: the number of inputs, their bounds, and the table at the end of `make fuzz`.

`make test` gives every target a few hundred inputs, always the same; `make fuzz` a hundred thousand
(FUZZ_INPUTS), new ones each time. An interval timer bounds each in processor time, the process's
address space in memory: an input that takes more raises inside the code under test, and neither
TimeoutError nor MemoryError is a documented answer.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

from selfemo.common.errors import UserError
from tests.helpers.damage import BATCH, INPUTS

CPU_S_PER_INPUT = 10
MEMORY_BYTES = 2 << 30
"""Bytes of address space that a target's inputs may add to those mapped at its start."""


@dataclass
class Tally:
    """Counts the inputs of a target by outcome."""

    name: str
    accepted: int = 0
    refused: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    grown_bytes: int = field(default=0)

    @property
    def inputs(self) -> int:
        """Count all inputs."""
        return self.accepted + self.refused

    def batch(self, seed: int) -> Iterator[random.Random]:
        """Yield a generator per input of a batch."""
        for number in range(min(BATCH, INPUTS)):
            yield random.Random(f"{seed}/{number}")

    def try_input(self, read: Callable[[], object], shown: object) -> object | UserError:
        """Call `read`; returns its result or the UserError it raises.

        Anything else that it raises fails the test.

        Args:
            shown: the input, for the report of a failure.
        """
        signal.setitimer(signal.ITIMER_PROF, CPU_S_PER_INPUT)
        started = time.process_time()
        try:
            result = read()
            self.accepted += 1
            return result
        except UserError as refusal:
            # A bound must not be reported as the file's fault.
            if isinstance(refusal.__cause__, (TimeoutError, MemoryError)):
                refusal.add_note(f"input: {shown!r}"[:4000])
                raise
            self.refused += 1
            return refusal
        except BaseException as error:
            error.add_note(f"input: {shown!r}"[:4000])
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - started
            self.cpu_s += seconds
            self.slowest_s = max(self.slowest_s, seconds)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty directory the working directory: a file that escaped would appear in it."""
    place = tmp_path / "inner" / "scratch"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    return place


TALLIES = pytest.StashKey[list[Tally]]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Count and bound a target's inputs."""
    found = Tally(request.node.name.removeprefix("test_"))
    request.config.stash.setdefault(TALLIES, []).append(found)
    mapped_bytes, limits = _mapped_bytes(), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + MEMORY_BYTES, limits[1]))
    before = signal.signal(signal.SIGPROF, _out_of_time)
    try:
        yield found
    finally:
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        found.grown_bytes = max(0, _mapped_bytes() - mapped_bytes)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of a run with many inputs."""
    if "FUZZ_INPUTS" not in os.environ:
        return
    terminalreporter.write_line(
        f"{'target':<44}{'inputs':>9}{'accepted':>10}{'refused':>9}"
        f"{'cpu s':>8}{'slowest ms':>12}{'grown MiB':>11}"
    )
    for t in config.stash.get(TALLIES, []):
        figures = (
            f"{t.inputs:>9,}{t.accepted:>10,}{t.refused:>9,}"
            f"{t.cpu_s:>8.0f}{1000 * t.slowest_s:>12.1f}{t.grown_bytes / 2**20:>11.1f}"
        )
        terminalreporter.write_line(f"{t.name[:43]:<44}{figures}")


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"an input took more than {CPU_S_PER_INPUT} s of processor time")
