"""Measures the formulas on a CPU: time in one process, round after round, and peak memory in one each.

Interleaved rounds let a noisy neighbour hit every formula alike. The report has the median time of
each, beside the median of the processor time that the process was given: on a shared machine, the wall
clock also counts the work of others. Peak memory on a CPU is the kernel's own figure (VmHWM, reset
before the call), with malloc told to return freed memory, so that one call's leftovers do not hide the
next one's need.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tools.kernels.benchmark.formulas import WORKLOADS, Batch, Formula


@dataclass(frozen=True)
class Sizes:
    """Sizes of the inputs, and their dtype and device."""

    workload: str
    tokens: int
    hidden: int
    columns: int
    dtype: str
    device: str
    repeats: int


@dataclass(frozen=True)
class Row:
    """One formula's figures. None if nothing was measured; `note` has the reason."""

    formula: str
    median_ms: float | None = None
    fastest_ms: float | None = None
    cpu_ms: float | None = None
    """Median processor time of all threads, waiting in a spin included."""
    first_call_ms: float | None = None
    extra_peak_bytes: int | None = None
    error: float | None = None
    """Largest difference from the first formula's gradients, relative to their largest element."""
    note: str = ""


def inputs(sizes: Sizes) -> tuple[tuple[Tensor, ...], Batch]:
    """Make the tensors to differentiate (logits, or hidden states and weight) and the rest.

    The numbers are the same at every call.
    """
    dtype, tokens, device = getattr(torch, sizes.dtype), sizes.tokens, sizes.device
    generator = torch.Generator(device).manual_seed(0)
    length = min(64, tokens)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    batch = Batch(
        targets_T=torch.randint(0, sizes.columns, (tokens,), generator=generator, device=device),
        dlogprob_T=normal(tokens),
        dentropy_T=normal(tokens),
        advantage_S=normal(tokens // length),
        sequence_length=length,
    )
    if sizes.workload == "logits":
        return (normal(tokens, sizes.columns, dtype=dtype).mul_(3),), batch
    hidden_TH = normal(tokens, sizes.hidden, dtype=dtype)
    return (hidden_TH, normal(sizes.columns, sizes.hidden, dtype=dtype).mul_(0.1)), batch


@dataclass(frozen=True)
class Call:
    """One forward and backward pass."""

    wall_ms: float
    cpu_ms: float
    gradients: tuple[Tensor, ...]


def run_all(sizes: Sizes, threads: int, names: tuple[str, ...] | None = None) -> list[Row]:
    """Measure the workload's formulas (those named; None: all) on so many CPU threads.

    Each gets one first call, which compiles and allocates, then rounds. A formula that cannot be
    measured, because a device or a peer is missing or the peer fails, gets a row with the reason.
    """
    formulas = tuple(
        formula for formula in WORKLOADS[sizes.workload] if names is None or formula.name in names
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(sizes, formulas)
    finally:
        torch.set_num_threads(before)


def _measure(sizes: Sizes, formulas: tuple[Formula, ...]) -> list[Row]:
    tensors, batch = inputs(sizes)
    notes = {formula.name: formula.missing(sizes.device) for formula in formulas}
    present = [formula for formula in formulas if notes[formula.name] is None]
    first_ms: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    reference: tuple[Tensor, ...] = ()
    for formula in present:
        try:
            first = _call(formula, tensors, batch)
        except Exception as error:  # a peer's, of any kind: it must not take the other rows with it
            if formula.needs is None:
                raise
            notes[formula.name] = (
                f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        first_ms[formula.name] = first.wall_ms
        kept = tuple(gradient.clone() for gradient in first.gradients)
        reference = reference or kept
        errors[formula.name] = _difference(kept, reference)
        del first
    present = [formula for formula in present if notes[formula.name] is None]
    times: dict[str, list[tuple[float, float]]] = {formula.name: [] for formula in present}
    for _ in range(sizes.repeats):
        for formula in present:
            call = _call(formula, tensors, batch)
            times[formula.name].append((call.wall_ms, call.cpu_ms))
            del call
    del reference, tensors
    rows = []
    for formula in formulas:
        if formula.name not in times:
            rows.append(Row(formula.name, note=notes[formula.name] or ""))
            continue
        wall_ms, cpu_ms = zip(*times[formula.name])
        cpu = statistics.median(cpu_ms)
        peak = _peak_in_own_process(sizes, formula.name)
        rows.append(
            Row(
                formula.name,
                statistics.median(wall_ms),
                min(wall_ms),
                cpu,
                first_ms[formula.name],
                peak,
                errors[formula.name],
            )
        )
    return rows


def _call(formula: Formula, tensors: tuple[Tensor, ...], batch: Batch) -> Call:
    """Run one forward and backward pass over fresh copies of the inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    begin, cpu_begin = time.perf_counter(), time.process_time()
    gradients = formula.run(*leaves, batch)
    return Call((time.perf_counter() - begin) * 1e3, (time.process_time() - cpu_begin) * 1e3, gradients)


def _difference(gradients: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float | None:
    if len(gradients) != len(reference):
        return None
    pairs = zip(gradients, reference)
    return max(
        float((one.float() - other.float()).abs().max() / other.float().abs().max()) for one, other in pairs
    )


def _peak_in_own_process(sizes: Sizes, name: str) -> int:
    """Return the extra peak bytes of one call in a new process, inputs not counted, after a warm-up call."""
    threads = str(torch.get_num_threads())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "tools.kernels.benchmark.measure", json.dumps(asdict(sizes)), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_of_one_call(sizes: Sizes, name: str) -> int:
    """Return the peak memory of a second call in this process, above the resident memory before it."""
    (formula,) = (formula for formula in WORKLOADS[sizes.workload] if formula.name == name)
    tensors, batch = inputs(sizes)
    _call(formula, tensors, batch)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM restarts at the memory that is resident now
    before = _status_bytes("VmRSS")
    formula.run(*leaves, batch)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(peak_of_one_call(Sizes(**json.loads(sys.argv[1])), sys.argv[2]))
