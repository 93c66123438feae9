"""Times calls on a GPU by CUDA events, with the cache emptied before each; on a CPU by the clock.

The write that evicts the cache also keeps the GPU busy while the host launches the call, so that short
kernels are not charged for their launch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tools.kernels.benchmark.formulas import Formula
from tools.kernels.benchmark.measure import Sizes
from tools.kernels.gpu.bench import Workload
from tools.kernels.gpu.rows import Timed

EVICT_BYTES = 1 << 29
"""Written before every timed call: some times the largest cache, and long enough to hide a launch."""
ROUNDS, ROUNDS_S = 15, 1.0
"""A call is timed so often, or until so many seconds have passed, but at least thrice."""


class Clock:
    """Times calls on one device."""

    def __init__(self, device: str) -> None:
        self._is_gpu = device == "cuda"
        self._rounds = ROUNDS if self._is_gpu else 3
        self._evict = torch.empty(EVICT_BYTES if self._is_gpu else 0, dtype=torch.int8, device=device)

    def times_ms(self, run: Callable[..., object], leaves: Sequence[Tensor]) -> list[float]:
        """Time `run` on fresh copies of the leaves, call after call; the first is not among the results."""
        times: list[float] = []
        started = time.monotonic()
        while len(times) < self._rounds and (len(times) < 3 or time.monotonic() - started < ROUNDS_S):
            times.append(self.once_ms(run, leaves))
        return times

    def once_ms(self, run: Callable[..., object], leaves: Sequence[Tensor]) -> float:
        """Time one call on fresh copies of the leaves."""
        copies = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves]
        if not self._is_gpu:
            started = time.perf_counter()
            run(*copies)
            return (time.perf_counter() - started) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._evict.zero_()
        begin.record()
        run(*copies)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def peak_bytes(self, run: Callable[..., object], leaves: Sequence[Tensor]) -> int | None:
        """Return the memory that one call takes above its inputs, by torch's allocator."""
        if not self._is_gpu:
            return None
        copies = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(*copies)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def timed(clock: Clock, load: Workload, formula: Formula, sizes: Sizes) -> Timed:
    """Time one formula. What it raises becomes its row's note: a peer must not take the others with it."""

    def run(*copies: Tensor) -> object:
        return formula.run(*copies, *load.extra)

    row = Timed(load.name, sizes.tokens, formula.name, nbytes=load.nbytes, flops=load.flops)
    if missing := formula.missing(sizes.device):
        return replace(row, note=missing)
    try:
        first_ms = clock.once_ms(run, load.leaves)
        peak = clock.peak_bytes(run, load.leaves)
        times = clock.times_ms(run, load.leaves)
    except Exception as error:  # noqa: BLE001 - of a peer, a compiler, or no memory left
        reason = (str(error).splitlines() or [""])[0][:160]
        return replace(row, note=f"failed: {type(error).__name__}: {reason}")
    finally:
        if sizes.device == "cuda":
            torch.cuda.empty_cache()
    return replace(
        row,
        median_ms=statistics.median(times),
        fastest_ms=min(times),
        first_call_ms=first_ms,
        extra_peak_bytes=peak,
    )
