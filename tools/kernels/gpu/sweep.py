"""Times the kernels with other block sizes and warps, to tune `triton_backend.Launches` for a card.

A setting counts only if its results agree with those of the present one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from selfemo.kernels.triton_backend import Launch, Launches, TritonBackend
from tools.kernels.benchmark.measure import Sizes, inputs
from tools.kernels.gpu.bench import KERNELS, Workload
from tools.kernels.gpu.timing import Clock

VOCAB = [Launch(block, warps) for block in (2048, 4096, 8192, 16_384) for warps in (4, 8, 16)]
SEQUENCE = [Launch(block, warps) for block in (128, 256, 512, 1024) for warps in (2, 4, 8)]
GROUP = [Launch(block, warps) for block in (16, 32, 64) for warps in (1, 2)]
SETTINGS = {"vocab_stats": VOCAB, "dlogits": VOCAB, "sequence_loss": SEQUENCE, "group_advantages": GROUP}
"""The settings of each kernel, by its field of Launches."""
AGREEMENT = 1e-2
"""Largest difference from the present setting, as a share of the largest element: two roundings to bf16."""


@dataclass(frozen=True)
class Setting:
    """One setting's time; None with the reason in `note` if it has none."""

    kernel: str
    launch: Launch
    median_ms: float | None = None
    note: str = ""


def sweep(sizes: Sizes, clock: Clock, has_time: Callable[[], bool], most: int | None = None) -> list[Setting]:
    """Time every setting of every kernel (`most`: the first few), until the time is up."""
    (logits_TV,), batch = inputs(replace(sizes, workload="logits"))
    found: list[Setting] = []
    for kernel, launches in SETTINGS.items():
        if not has_time():
            found += [Setting(kernel, launch, note="not run: the time was up") for launch in launches[:most]]
            continue
        expected = _results(KERNELS[kernel](sizes, (logits_TV, batch), TritonBackend()))
        for launch in launches[:most]:
            backend = TritonBackend(replace(Launches(), **{kernel: launch}))
            workload = KERNELS[kernel](sizes, (logits_TV, batch), backend)
            found.append(_setting(kernel, launch, workload, expected, clock))
    return found


def best(settings: list[Setting]) -> Launches:
    """Return the fastest setting of each kernel; the present one where none was timed."""
    chosen = Launches()
    for field in fields(Launches):
        timed = [one for one in settings if one.kernel == field.name and one.median_ms is not None]
        if timed:
            fastest = min(timed, key=lambda one: one.median_ms or 0.0)
            chosen = replace(chosen, **{field.name: fastest.launch})
    return chosen


def _setting(
    kernel: str, launch: Launch, workload: Workload, expected: list[Tensor], clock: Clock
) -> Setting:
    ours = workload.formulas[0].run
    try:
        worst = max(_difference(got, want) for got, want in zip(_results(workload), expected, strict=True))
        if not worst <= AGREEMENT:
            return Setting(kernel, launch, note=f"differs from the present setting by {worst:.1e}")
        times = clock.times_ms(lambda *copies: ours(*copies, *workload.extra), workload.leaves)
    except Exception as error:  # noqa: BLE001 - of the compiler, or too little shared memory
        return Setting(kernel, launch, note=f"failed: {type(error).__name__}: {str(error)[:120]}")
    return Setting(kernel, launch, statistics.median(times))


def _results(workload: Workload) -> list[Tensor]:
    """Return our formula's tensors: those of its result, or the logits that it overwrote."""
    copies = [leaf.clone() for leaf in workload.leaves]
    result: Any = workload.formulas[0].run(*copies, *workload.extra)
    return copies[:1] if result is None else [getattr(result, field.name) for field in fields(result)]


def _difference(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).abs().max() / want.abs().max().clamp(min=1e-30))
