"""Runs the parts in order of their information, within one budget of time."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton

from selfemo.kernels.triton_backend import TritonBackend
from tools.kernels.benchmark.measure import Sizes
from tools.kernels.gpu.bench import COMPILED, workloads
from tools.kernels.gpu.cases import QWEN3_VOCABULARY, Place
from tools.kernels.gpu.page import Findings
from tools.kernels.gpu.properties import all_cases
from tools.kernels.gpu.rows import Timed
from tools.kernels.gpu.sweep import sweep
from tools.kernels.gpu.timing import Clock, timed
from tools.kernels.gpu.trainer import ABSENT_STATUS

TIME_IS_UP = "not run: the time was up"
ROOT = Path(__file__).resolve().parents[3]
TRAINER = "three steps of the trainer"
TRAINER_S = 150
"""Seconds after which the trainer's steps are ended."""


@dataclass(frozen=True)
class Plan:
    """What runs, at which sizes."""

    implementations: tuple[str, ...]
    tokens: tuple[int, ...]
    hidden: int
    columns: int
    sweep_tokens: int
    copy_bytes: int
    settings: int | None
    """How many settings of each kernel the sweep times; None: all."""
    compiles: bool
    """Whether formulas that torch.compile makes are timed."""


GPU = Plan(("triton",), (8192, 32_768), 4096, QWEN3_VOCABULARY, 4096, 1 << 31, None, True)
CPU = Plan(("torch", "triton"), (16,), 16, 101, 8, 1 << 20, 2, False)


class Program:
    """One run on one device.

    Args:
        budget_s: seconds after which nothing new is begun; what was left out has a row that says so.
    """

    def __init__(self, device: str, output: Path, budget_s: float, say: Callable[[str], None]) -> None:
        self._started = time.monotonic()
        self._device, self._output, self._say = device, output, say
        self._plan = GPU if device == "cuda" else CPU
        self._clock = Clock(device)
        self.findings = Findings(_machine(device), device == "cuda", budget_s)

    def run(self) -> Findings:
        """Run every part; the findings are on disk after each."""
        first, *others = self._plan.tokens
        self._part("cases", self._cases)
        self._part("trainer's steps", self._trainer)
        self._part("copy", self._copy)
        self._part(f"bench of {first} tokens", partial(self._bench, first, False))
        self._part("sweep", self._sweep)
        for tokens in others:
            self._part(f"bench of {tokens} tokens", partial(self._bench, tokens, False))
        for tokens in self._plan.tokens if self._plan.compiles else ():
            self._part(f"torch.compile, {tokens} tokens", partial(self._bench, tokens, True))
        return self.findings

    def _has_time(self) -> bool:
        return time.monotonic() - self._started < self.findings.budget_s

    def _part(self, name: str, work: Callable[[], None]) -> None:
        begun = time.monotonic()
        work()
        now = time.monotonic()
        self.findings.seconds[name] = now - begun
        self.findings.write(self._output)
        self._say(
            f"{name}: {now - begun:.0f} s, {now - self._started:.0f} of {self.findings.budget_s:.0f} used"
        )

    def _cases(self) -> None:
        found = self.findings
        for impl in self._plan.implementations:
            place = Place(self._device, impl, is_small=self._plan is CPU)  # type: ignore[arg-type]
            for name, check in all_cases(place):
                title = f"{name} ({impl})"
                if not self._has_time():
                    found.failures[title] = TIME_IS_UP
                    continue
                try:
                    found.cases[title] = check()
                except Exception as error:  # noqa: BLE001 - a case that fails stops no other
                    found.failures[title] = f"{type(error).__name__}: {str(error)[:300]}"
                    self._say(f"FAILED {title}: {found.failures[title]}")
        self._say(f"{len(found.cases)} cases agree with the oracle, {len(found.failures)} do not")

    def _trainer(self) -> None:
        """Run trainer.py as a process, since it needs more packages than torch and triton, or cannot."""
        found = self.findings
        if not self._has_time():
            found.trainer = found.failures[TRAINER] = TIME_IS_UP
            return
        command = (sys.executable, "-m", "tools.kernels.gpu.trainer", "--device", self._device)
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=TRAINER_S
            )
        except subprocess.TimeoutExpired:
            found.trainer = found.failures[TRAINER] = f"did not end in {TRAINER_S} s"
            return
        last = (done.stdout.splitlines() or [done.stderr[-300:]])[-1]
        found.trainer = last
        if done.returncode not in (0, ABSENT_STATUS):
            found.failures[TRAINER] = f"{last} {done.stderr[-300:]}"
        self._say(f"{TRAINER}: {last}")

    def _copy(self) -> None:
        source = torch.zeros(self._plan.copy_bytes, dtype=torch.int8, device=self._device)
        target = torch.empty_like(source)
        times_ms = self._clock.times_ms(lambda: target.copy_(source), ())
        self.findings.copy_bytes_per_s = 2 * source.nbytes / statistics.median(times_ms) * 1e3

    def _sizes(self, tokens: int) -> Sizes:
        return Sizes("", tokens, self._plan.hidden, self._plan.columns, "bfloat16", self._device, 0)

    def _bench(self, tokens: int, compiled: bool) -> None:
        """Time the formulas that torch.compile makes, which take longest to begin, or all others."""
        sizes, rows = self._sizes(tokens), self.findings.timings
        for load in workloads(sizes, TritonBackend()):
            for formula in load.formulas:
                if (COMPILED in formula.name) is not compiled:
                    continue
                if self._has_time():
                    rows.append(timed(self._clock, load, formula, sizes))
                else:
                    rows.append(Timed(load.name, tokens, formula.name, note=TIME_IS_UP))

    def _sweep(self) -> None:
        sizes = self._sizes(self._plan.sweep_tokens)
        self.findings.settings = sweep(sizes, self._clock, self._has_time, self._plan.settings)


def _machine(device: str) -> dict[str, str]:
    facts = {"torch": torch.__version__, "triton": triton.__version__, "Python": platform.python_version()}
    if device == "cpu":
        return {"device": f"{platform.machine()} CPU, {os.cpu_count()} cores", **facts}
    card = torch.cuda.get_device_properties(0)
    return {
        "device": card.name,
        "memory": f"{card.total_memory / 2**30:.0f} GiB",
        "multiprocessors": str(card.multi_processor_count),
        "capability": f"{card.major}.{card.minor}",
        "CUDA": str(torch.version.cuda),
        **facts,
    }
