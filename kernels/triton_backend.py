"""Launches the Triton kernels: the GPU path (CUDA and HIP), and in tests Triton's interpreter.

Grids are one-dimensional: one program per token, sequence or group. Block sizes and warps were chosen
from ahead-of-time compilation (no spills, 128-bit loads, docs/kernels.md). tools/gpu_kernels.py times
others on a GPU: nothing else depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from selfemo.kernels.backend import DEGENERATE, SEQUENCE_SUMS, GroupStats, PolicyBatch, SequenceLoss
from selfemo.kernels.config import AdvantageConfig, LossConfig
from selfemo.kernels.triton_group import (
    NORMALISE_LEAVE_ONE_OUT,
    NORMALISE_NONE,
    NORMALISE_STD,
    group_advantage_kernel,
)
from selfemo.kernels.triton_sequence import KL_K2, KL_K3, KL_NONE, sequence_loss_kernel
from selfemo.kernels.triton_vocab import dlogits_kernel, vocab_stats_kernel
from selfemo.kernels.vocab_parallel import ShardStats, SoftmaxStats, VocabShard


@dataclass(frozen=True)
class Launch:
    """Elements that a program holds at a time, a power of two, and the warps that share them."""

    block: int
    warps: int


@dataclass(frozen=True)
class Launches:
    """Launch of each kernel."""

    vocab_stats: Launch = Launch(4096, 8)
    dlogits: Launch = Launch(4096, 8)
    sequence_loss: Launch = Launch(256, 8)
    group_advantages: Launch = Launch(64, 1)


NORMALISE = {"none": NORMALISE_NONE, "std": NORMALISE_STD, "leave_one_out": NORMALISE_LEAVE_ONE_OUT}
KL = {"k2": KL_K2, "k3": KL_K3}


def can_run(device_type: str) -> bool:
    """Whether Triton runs on tensors of this device: on any GPU, and anywhere in Triton's interpreter,
    which is for tests.
    """
    return device_type == "cuda" or bool(triton.knobs.runtime.interpret)


class TritonBackend:
    """The four kernels behind the interface of `backend.Backend`."""

    can_keep_exp = False

    def __init__(self, launches: Launches | None = None) -> None:
        self.launches = launches or Launches()

    def vocab_stats(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        live_T: Tensor | None,
        shard: VocabShard,
        inv_temperature: float,
        keep_exp: bool = False,
    ) -> ShardStats:
        assert not keep_exp  # can_keep_exp
        tokens = logits_TV.shape[0]
        stats_4T = torch.empty(4, tokens, dtype=torch.float32, device=logits_TV.device)
        with torch.cuda.device_of(logits_TV):
            vocab_stats_kernel[(tokens,)](
                logits_TV,
                targets_T,
                targets_T if live_T is None else live_T.view(torch.uint8),
                *stats_4T,
                logits_TV.stride(0),
                shard.columns,
                shard.real_columns,
                shard.start,
                inv_temperature,
                HAS_LIVE=live_T is not None,
                BLOCK=self.launches.vocab_stats.block,
                num_warps=self.launches.vocab_stats.warps,
            )
        return ShardStats(*stats_4T)

    def dlogits_(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        softmax: SoftmaxStats,
        dlogprob_T: Tensor,
        dentropy_T: Tensor,
        shard: VocabShard,
        inv_temperature: float,
    ) -> None:
        with torch.cuda.device_of(logits_TV):
            dlogits_kernel[(logits_TV.shape[0],)](
                logits_TV,
                targets_T,
                softmax.max_T,
                softmax.log_sum_T,
                softmax.entropy_T,
                dlogprob_T,
                dentropy_T,
                logits_TV.stride(0),
                shard.columns,
                shard.real_columns,
                shard.start,
                inv_temperature,
                BLOCK=self.launches.dlogits.block,
                num_warps=self.launches.dlogits.warps,
            )
        # Autograd does not see Triton's writes: without this, a second backward would not fail.
        torch.autograd.graph.increment_version(logits_TV)

    def sequence_loss(
        self, logprob_T: Tensor, entropy_T: Tensor, batch: PolicyBatch, config: LossConfig
    ) -> SequenceLoss:
        sequences = batch.cu_seqlens.numel() - 1
        sums_SM = torch.empty(sequences, len(SEQUENCE_SUMS), dtype=torch.float32, device=logprob_T.device)
        dlogprob_T, dentropy_T = torch.empty_like(logprob_T), torch.empty_like(logprob_T)
        with torch.cuda.device_of(logprob_T):
            sequence_loss_kernel[(sequences,)](
                logprob_T,
                entropy_T,
                *(logprob_T if x is None else x for x in (batch.old_T, batch.ref_T, batch.rollout_T)),
                batch.mask_T.view(torch.uint8),
                batch.cu_seqlens,
                batch.advantage_S,
                batch.token_weight_S,
                batch.tokens_S,
                dlogprob_T,
                dentropy_T,
                sums_SM,
                config.clip_low,
                config.clip_high,
                config.dual_clip or 0.0,
                config.kl_beta,
                config.truncated_importance_cap or 0.0,
                config.entropy_weight,
                SEQUENCE_RATIO=config.ratio_level == "sequence",
                KL=KL_NONE if batch.ref_T is None else KL[config.kl_estimator],
                HAS_OLD=batch.old_T is not None,
                HAS_ROLLOUT=batch.rollout_T is not None,
                HAS_CAP=config.truncated_importance_cap is not None,
                HAS_DUAL=config.dual_clip is not None,
                BLOCK=self.launches.sequence_loss.block,
                num_warps=self.launches.sequence_loss.warps,
            )
        return SequenceLoss(sums_SM, dlogprob_T, dentropy_T)

    def group_advantages(
        self, rewards_SC: Tensor, group_ptr: Tensor, reward_weights_C: Tensor, config: AdvantageConfig
    ) -> GroupStats:
        samples, components = rewards_SC.shape
        groups = group_ptr.numel() - 1
        advantage_S = torch.empty(samples, dtype=torch.float32, device=rewards_SC.device)
        stats_3G = torch.empty(3, groups, dtype=torch.float32, device=rewards_SC.device)
        with torch.cuda.device_of(rewards_SC):
            group_advantage_kernel[(groups,)](
                rewards_SC,
                reward_weights_C,
                group_ptr,
                advantage_S,
                *stats_3G,
                components,
                -1 if config.range_component is None else config.range_component,
                config.epsilon,
                DEGENERATE,
                NORMALISE=NORMALISE[config.normalise],
                BLOCK=self.launches.group_advantages.block,
                num_warps=self.launches.group_advantages.warps,
            )
        return GroupStats(advantage_S, *stats_3G)
