"""Counts the bytes that each formula moves and holds per logit.

Eager formulas and the CPU path are counted by their operators, the Triton kernels by address.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from selfemo.kernels import token_logprobs
from selfemo.kernels.torch_backend import CHUNK_ELEMENTS
from tools.kernels.traffic import TorchMeter, interpreted_traffic

CACHE_BYTES = 8 * CHUNK_ELEMENTS
"""Storages up to this size stay in the cache: two scratches of the CPU path."""


@dataclass(frozen=True)
class TrafficRow:
    """Bytes per bf16 logit; `peak` is held beside the logits, None if it was not counted."""

    formula: str
    read: float
    written: float
    peak: float | None


def _with_entropy(x_TV: Tensor, targets_T: Tensor, a_T: Tensor, b_T: Tensor) -> None:
    log_p_TV = torch.log_softmax(x_TV.float() / 1.3, -1)
    entropy_T = -(log_p_TV.exp() * log_p_TV).sum(-1)
    (log_p_TV.gather(1, targets_T[:, None])[:, 0] @ a_T + entropy_T @ b_T).backward()


def _log_softmax(x_TV: Tensor, targets_T: Tensor, a_T: Tensor, b_T: Tensor) -> None:
    log_p_TV = torch.log_softmax(x_TV.float() / 1.3, -1)
    (log_p_TV.gather(1, targets_T[:, None])[:, 0] @ a_T).backward()


def _gather_minus_logsumexp(x_TV: Tensor, targets_T: Tensor, a_T: Tensor, b_T: Tensor) -> None:
    scaled_TV = x_TV.float() / 1.3
    logprob_T = scaled_TV.gather(1, targets_T[:, None])[:, 0] - torch.logsumexp(scaled_TV, -1)
    with torch.no_grad():  # the entropy as a metric
        p_TV = torch.softmax(scaled_TV, -1)
        torch.logsumexp(scaled_TV, -1) - (p_TV * scaled_TV).sum(-1)
    (logprob_T @ a_T).backward()


def _ours(x_TV: Tensor, targets_T: Tensor, a_T: Tensor, b_T: Tensor) -> None:
    got = token_logprobs(x_TV, targets_T, temperature=1.3)
    (got.logprob_T @ a_T + got.entropy_T @ b_T).backward()


def _ours_forward(x_TV: Tensor, targets_T: Tensor, a_T: Tensor, b_T: Tensor) -> None:
    with torch.no_grad():
        token_logprobs(x_TV, targets_T, temperature=1.3)


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], None]] = {
    "eager log_softmax, entropy in the loss": _with_entropy,
    "eager gather - logsumexp, entropy as a metric": _gather_minus_logsumexp,
    "eager log_softmax, no entropy": _log_softmax,
    "selfemo CPU path, entropy in the loss": _ours,
    "selfemo CPU path, forward only": _ours_forward,
}


def torch_rows(tokens: int = 1024, columns: int = 8192) -> list[TrafficRow]:
    """Measure eager formulas and the CPU path, on logits of any size that does not fit the cache."""
    rows = []
    for name, formula in FORMULAS.items():
        x_TV = torch.randn(tokens, columns).bfloat16().requires_grad_()
        a_T, b_T = torch.randn(2, tokens)
        with TorchMeter(CACHE_BYTES) as meter:
            formula(x_TV, torch.arange(tokens), a_T, b_T)
        logits = tokens * columns
        rows.append(
            TrafficRow(
                name,
                meter.counted.read_bytes / logits,
                meter.counted.written_bytes / logits,
                meter.peak_bytes / logits,
            )
        )
    return rows


def triton_rows(tokens: int = 4, columns: int = 8192) -> list[TrafficRow]:
    """Measure the Triton kernels, in a process with Triton's interpreter."""
    command = [sys.executable, "-m", "tools.kernels.benchmark.traffic_table", str(tokens), str(columns)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [TrafficRow(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _interpreted(tokens: int, columns: int) -> list[TrafficRow]:
    x_TV, logits = torch.randn(tokens, columns).bfloat16().requires_grad_(), tokens * columns
    with interpreted_traffic(x_TV) as forward:
        got = token_logprobs(x_TV, torch.arange(tokens), temperature=1.3, impl="triton")
    with interpreted_traffic(x_TV) as backward:
        (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    return [
        TrafficRow(
            "selfemo Triton vocab_stats", forward.read_bytes / logits, forward.written_bytes / logits, None
        ),
        TrafficRow(
            "selfemo Triton dlogits", backward.read_bytes / logits, backward.written_bytes / logits, None
        ),
    ]


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in _interpreted(int(sys.argv[1]), int(sys.argv[2]))]))
