"""Test the CPU path's memory traffic: it touches each logit once forward and twice backward.

Its two scratch buffers a thread stay 1 MiB for any batch.
"""

from __future__ import annotations

import math

import pytest
import torch

from selfemo.kernels import LossConfig, grpo_loss, token_logprobs
from selfemo.kernels.torch_backend import CHUNK_ELEMENTS
from tools.kernels.traffic import TorchMeter

TOKENS, COLUMNS = 1024, 8192
SCRATCH_BYTES = 2 * 4 * CHUNK_ELEMENTS
CACHE_BYTES = SCRATCH_BYTES  # an eighth of the bf16 logits


def logits() -> torch.Tensor:
    return torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()


def loss(logits_TV: torch.Tensor, config: LossConfig) -> torch.Tensor:
    cu_seqlens = torch.tensor([0, 200, TOKENS])
    targets_T, old_T = torch.arange(TOKENS), torch.full((TOKENS,), -9.0)
    advantage_S = torch.tensor([1.0, -1.0])
    return grpo_loss(
        logits_TV, targets_T, cu_seqlens, config=config, advantage_S=advantage_S, old_logprob_T=old_T
    ).loss


def test_eager_log_softmax_moves_many_times_as_much() -> None:
    """Measure a formula whose traffic can be added up by hand, to test the meter itself."""
    x_TV = logits()
    with TorchMeter(CACHE_BYTES) as meter:
        torch.log_softmax(x_TV.float(), -1)
    # widen: read 2, write 4; log_softmax: read 4, write 4
    assert meter.counted.total_bytes == TOKENS * COLUMNS * (2 + 4 + 4 + 4)
    assert meter.peak_bytes == TOKENS * COLUMNS * 8


def test_forward_reads_two_bytes_per_bf16_logit() -> None:
    x_TV = logits()
    with TorchMeter(CACHE_BYTES) as meter:
        token_logprobs(x_TV, torch.arange(TOKENS))
    assert meter.counted.read_bytes == 2 * TOKENS * COLUMNS
    assert meter.counted.written_bytes == 0
    assert meter.peak_bytes <= SCRATCH_BYTES + 200 * TOKENS


@pytest.mark.parametrize("entropy_weight", [0.0, 0.01])
def test_forward_and_backward_move_six_bytes_per_bf16_logit(entropy_weight: float) -> None:
    x_TV = logits().requires_grad_()
    with TorchMeter(CACHE_BYTES) as meter:
        loss(
            x_TV, LossConfig(entropy_weight=entropy_weight, clip_low=math.inf, clip_high=math.inf)
        ).backward()
    assert meter.counted.read_bytes == 4 * TOKENS * COLUMNS
    assert meter.counted.written_bytes == 2 * TOKENS * COLUMNS
    assert meter.peak_bytes <= SCRATCH_BYTES + 400 * TOKENS


def test_masked_tokens_move_only_their_zeros() -> None:
    x_TV = logits().requires_grad_()
    mask_T = torch.arange(TOKENS) % 4 == 0
    with TorchMeter(CACHE_BYTES) as meter:
        token_logprobs(x_TV, torch.arange(TOKENS), mask_T=mask_T).logprob_T.sum().backward()
    assert meter.counted.read_bytes == 4 * TOKENS * COLUMNS // 4
    assert meter.counted.written_bytes == 2 * TOKENS * COLUMNS


def test_peak_does_not_grow_with_the_batch() -> None:
    peaks = []
    for tokens in (512, 2048):
        x_TV = torch.randn(tokens, 4096).bfloat16().requires_grad_()
        with TorchMeter(CACHE_BYTES) as meter:
            token_logprobs(x_TV, torch.arange(tokens)).logprob_T.sum().backward()
        peaks.append(meter.peak_bytes)
    assert peaks[1] - peaks[0] <= 400 * (2048 - 512)
