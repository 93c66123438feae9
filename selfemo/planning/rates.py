"""Hold the few numbers that step times are calibrated with: how far real software stays behind the
data sheet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Efficiencies and overheads. The first six are assumed, the others fitted to one published
    run (published.py)."""

    gemm_efficiency: float = 0.7
    """Share of the dense peak that large matrix products reach."""
    memory_efficiency: float = 0.8
    """Share of the HBM rate that streaming reads reach."""
    link_efficiency: float = 0.7
    """Share of the link rate that collectives reach."""
    all_reduce_s: float = 25e-6
    """Seconds of one small all-reduce inside a node: its latency, not its bandwidth."""
    direct_sync_s: float = 0.5
    """Seconds to wake the engines and start transfers on the direct path; not measured on a GPU yet."""
    gather_rate: float = 1e9
    """Bytes of optimizer state per second that gloo gathers in one rank's pageable memory; not measured
    between GPU machines yet."""
    layer_s: float = 0.0
    """Seconds to launch one layer forward and backward for one micro-batch; a forward alone takes a third."""
    decode_step_s: float = 0.0
    """Seconds to schedule, sample and launch one decode step."""
    refit_rate: float = 1.0
    """Checkpoint path: bytes of an engine rank's weights that are gathered, converted and loaded
    per second."""
    step_s: float = 0.0
    """Seconds of everything else in a step: data, rewards, logging."""
