"""Make random packed micro-batches, the same in this process, on a rank, and in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfemo.kernels import BatchCounts, LossConfig, LossResult, grpo_loss
from selfemo.kernels.vocab_parallel import ShardStats, SoftmaxStats
from tests.helpers import kernel_oracle as oracle

PRESETS = {
    "grpo": LossConfig.preset("grpo"),
    "dr_grpo": LossConfig.preset("dr_grpo", max_length=50),
    "dapo": LossConfig.preset("dapo", dual_clip=1.2, temperature=0.8),
    "gspo": LossConfig.preset("gspo", clip_low=0.05, clip_high=0.05, kl_beta=0.1, kl_estimator="k2"),
    "self_grpo": LossConfig.preset(
        "self_grpo", truncated_importance_cap=1.1, entropy_weight=0.01, temperature=1.3
    ),
    "everything": LossConfig(
        clip_low=0.1,
        clip_high=0.3,
        dual_clip=1.5,
        kl_beta=0.3,
        kl_estimator="k2",
        truncated_importance_cap=1.2,
        entropy_weight=0.05,
    ),
}
"""Every published variant, and one with every option; each somewhere off its defaults."""


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


def run(
    case: Case, config: LossConfig, logits_TV: Tensor | None, on_policy: bool = False, **changes: Any
) -> LossResult:
    return grpo_loss(
        logits_TV,
        case.targets_T,
        case.cu_seqlens,
        config=config,
        advantage_S=case.advantage_S,
        sequence_weight_S=case.weight_S,
        old_logprob_T=None if on_policy else case.old_T,
        ref_logprob_T=case.ref_T,
        rollout_logprob_T=case.rollout_T,
        mask_T=case.mask_T,
        counts=case.counts,
        vocab_size=case.vocab_size,
        **changes,
    )


def truth(case: Case, config: LossConfig, on_policy: bool = False) -> oracle.Truth:
    return oracle.loss(
        case.logits_TV,
        case.targets_T,
        case.cu_seqlens,
        case.advantage_S,
        config,
        case.counts,
        weight_S=case.weight_S,
        old_T=None if on_policy else case.old_T,
        ref_T=case.ref_T,
        rollout_T=case.rollout_T,
        mask_T=case.mask_T,
        vocab_size=case.vocab_size,
    )


def joined_stats(stats: list[ShardStats]) -> SoftmaxStats:
    """Join the shards' statistics at temperature 1 as the ranks' two all-reduces do, in one process."""
    max_T = torch.stack([one.max_T for one in stats]).amax(0)
    scale_T = [(one.max_T - max_T).exp() for one in stats]
    sum_T = torch.stack([one.sum_T * scale for one, scale in zip(stats, scale_T)]).sum(0)
    weighted_T = torch.stack(
        [(one.weighted_T + one.sum_T * (one.max_T - max_T)) * scale for one, scale in zip(stats, scale_T)]
    ).sum(0)
    logprob_T = torch.stack([one.target_T for one in stats]).sum(0) - max_T - sum_T.log()
    return SoftmaxStats(max_T, sum_T.log(), logprob_T, sum_T.log() - weighted_T / sum_T)
