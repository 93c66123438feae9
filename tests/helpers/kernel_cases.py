"""Make random packed micro-batches, the same in this process, on a rank, and in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfemo.kernels import BatchCounts
from tests.helpers import kernel_oracle as oracle


@dataclass(frozen=True)
class Case:
    """One packed micro-batch with everything that the loss can take."""

    logits_TV: Tensor
    targets_T: Tensor
    cu_seqlens: Tensor
    advantage_S: Tensor
    weight_S: Tensor
    old_T: Tensor
    ref_T: Tensor
    rollout_T: Tensor
    mask_T: Tensor
    vocab_size: int
    counts: BatchCounts


def make_case(
    lengths: tuple[int, ...] = (5, 1, 14, 17),
    columns: int = 1003,
    vocab_size: int = 990,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shift: float = 0.0,
    scale: float = 3.0,
    temperature: float = 1.0,
    spread: float = 0.3,
) -> Case:
    """Draw logits as scale * N(0, 1) + shift.

    Old, reference and rollout logprobs are within about `spread` of the true ones. About a third of the
    tokens are masked, all of the second sequence's among them (a dummy). Columns past `vocab_size`
    hold large values, so that a kernel that reads padding fails.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    logits_TV = (torch.randn(tokens, columns, generator=generator) * scale + shift).to(dtype)
    logits_TV[:, vocab_size:] = shift + 50.0
    targets_T = torch.randint(0, vocab_size, (tokens,), generator=generator)
    logprob_T, _ = oracle.distribution(logits_TV.double(), targets_T, temperature, vocab_size)

    def near() -> Tensor:
        return (logprob_T + spread * torch.randn(tokens, generator=generator, dtype=torch.float64)).float()

    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    mask_T = torch.rand(tokens, generator=generator) > 0.3
    if len(lengths) > 1:
        mask_T[lengths[0] : lengths[0] + lengths[1]] = False
    return Case(
        logits_TV,
        targets_T,
        cu_seqlens,
        torch.randn(len(lengths), generator=generator),
        torch.rand(len(lengths), generator=generator) + 0.5,
        near(),
        near(),
        near(),
        mask_T,
        vocab_size,
        BatchCounts(sequences=11, tokens=123),
    )
