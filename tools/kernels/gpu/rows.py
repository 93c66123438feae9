"""Defines the row that a timed formula has in the findings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one formula on one workload; None with the reason in `note` if it was not timed."""

    workload: str
    tokens: int
    formula: str
    median_ms: float | None = None
    fastest_ms: float | None = None
    first_call_ms: float | None = None
    extra_peak_bytes: int | None = None
    """Memory above the inputs, by torch's allocator; None on a CPU."""
    nbytes: int | None = None
    """Bytes that the operation cannot avoid moving."""
    flops: int | None = None
    note: str = ""

    @property
    def bytes_per_s(self) -> float | None:
        """Achieved bytes per second, of the unavoidable ones."""
        return None if self.median_ms is None or self.nbytes is None else self.nbytes / self.median_ms * 1e3

    @property
    def flops_per_s(self) -> float | None:
        """Achieved floating-point operations per second."""
        return None if self.median_ms is None or self.flops is None else self.flops / self.median_ms * 1e3
