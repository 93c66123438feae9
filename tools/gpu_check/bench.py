"""Step `bench`: measures the kernels and compares the figures with the predictions of docs/kernels.md.

It runs tools/kernels/__main__.py. The predictions are for an H100 at T = 8,192, V = 151,936 in bf16. On
another card they are printed but nothing is judged by them. A missed prediction never fails the step:
to find out is the step's purpose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from selfemo.kernels import token_logprobs

Milliseconds = Mapping[str, float]
"""Median by formula, under the names of tools/kernels/__main__.py, and "forward"."""
OURS, EAGER = "selfemo token_logprobs", "eager log_softmax"
LIGER = "Liger triton_grpo_loss (no entropy)"
FUSED, GEMMS = "selfemo grpo_loss, fused", "the three GEMMs alone"
ROUNDS = 20
CPU_SIZES = ("--tokens", "64", "--vocab", "2048", "--hidden", "64", "--repeats", "2", "--threads", "1")


@dataclass(frozen=True)
class Prediction:
    """One predicted figure of docs/kernels.md."""

    text: str
    needs: tuple[str, ...]
    figure: Callable[[Milliseconds], float]
    bound: float
    at_most: bool = True

    def holds(self, measured: Milliseconds) -> bool:
        """Whether the measured figure is on the predicted side of the bound."""
        figure = self.figure(measured)
        return figure <= self.bound if self.at_most else figure >= self.bound


PREDICTIONS = (
    Prediction("forward at most 0.95 ms", ("forward",), lambda ms: ms["forward"], 0.95),
    Prediction("forward and backward at most 2.8 ms", (OURS,), lambda ms: ms[OURS], 2.8),
    Prediction(
        "within 10% of Liger's token-level Triton kernel",
        (OURS, LIGER),
        lambda ms: ms[OURS] / ms[LIGER],
        1.10,
    ),
    Prediction(
        "at least 8 times faster than eager log_softmax",
        (OURS, EAGER),
        lambda ms: ms[EAGER] / ms[OURS],
        8.0,
        at_most=False,
    ),
    Prediction(
        "fused projection at most 1.10 times its three GEMMs",
        (FUSED, GEMMS),
        lambda ms: ms[FUSED] / ms[GEMMS],
        1.10,
    ),
)


def main() -> None:
    """Run the benchmark and print the comparison. Fails only if the benchmark does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    sizes = CPU_SIZES if options.device == "cpu" else ()
    command = [
        sys.executable,
        "tools/kernels/__main__.py",
        "--device",
        options.device,
        "--json",
        str(options.json),
        *sizes,
    ]
    subprocess.run(command, check=True)
    rows = [row for workload in json.loads(options.json.read_text())["timing"] for row in workload["rows"]]
    measured = {row["formula"]: row["median_ms"] for row in rows if row["median_ms"] is not None}
    measured["forward"] = forward_ms(options.device)
    print("\n".join(compared(measured, options.device)))


def compared(measured: Milliseconds, device: str) -> list[str]:
    """Return one line per prediction: the predicted figure, the measured one, and whether they agree."""
    card = torch.cuda.get_device_name(0) if device == "cuda" else "a CPU"
    is_judged = "H100" in card
    lines = [f"predictions for an H100, measured on {card}" + ("" if is_judged else ": not judged")]
    for prediction in PREDICTIONS:
        missing = [name for name in prediction.needs if name not in measured]
        if missing:
            lines.append(f"unmeasured  {prediction.text}: no figure of {', '.join(missing)}")
            continue
        verdict = ("met" if prediction.holds(measured) else "MISSED") if is_judged else "-"
        lines.append(f"{verdict:<11} {prediction.text}: {prediction.figure(measured):.3g}")
    return lines


def forward_ms(device: str) -> float:
    """Return the time of the fastest of some forward passes over existing logits, in milliseconds."""
    tokens, columns = (8192, 151_936) if device == "cuda" else (64, 2048)
    logits_TV = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16)
    targets_T = torch.randint(0, columns, (tokens,), device=device)
    times = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            _synchronize(device)
            started = time.perf_counter()
            token_logprobs(logits_TV, targets_T)
            _synchronize(device)
            times.append((time.perf_counter() - started) * 1e3)
    return min(times)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
