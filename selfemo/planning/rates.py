"""How far real software stays behind the data sheet: the few numbers that step times are calibrated with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Efficiencies and overheads. The first five are assumed, the others fitted to one published run (published.py)."""

    gemm_efficiency: float = 0.7
    """Large matrix products, of the dense peak."""
    memory_efficiency: float = 0.8
    """Streaming reads, of the HBM rate."""
    link_efficiency: float = 0.7
    """Collectives, of the link rate."""
    all_reduce_s: float = 25e-6
    """One small all-reduce inside a node: latency, not bandwidth."""
    direct_sync_s: float = 0.5
    """Waking the engines and starting transfers on the direct path; not measured on a GPU yet."""
    layer_s: float = 0.0
    """Launching one layer forward and backward for one micro-batch; a forward alone takes a third."""
    decode_step_s: float = 0.0
    """Scheduling, sampling and launching one decode step."""
    refit_rate: float = 1.0
    """Checkpoint path: bytes of an engine rank's weights that are gathered, converted and loaded per second."""
    step_s: float = 0.0
    """Everything else in a step: data, rewards, logging."""
