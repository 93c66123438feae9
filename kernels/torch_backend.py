"""Implements the four operations in torch, for the CPU: in place, and in chunks that stay in the cache.

Eager `log_softmax` writes several fp32 copies of the logits to memory and reads them back; here a chunk
of rows is widened to fp32 in a scratch of CHUNK_ELEMENTS numbers, reduced or differentiated there, and
dropped. The logits cross the memory bus once forward and twice backward, as on the GPU. Extra memory is
two scratches per thread, whatever T and V are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from selfemo.kernels.backend import (
    DEGENERATE,
    LOG_RATIO_BOUND,
    SEQUENCE_SUMS,
    GroupStats,
    PolicyBatch,
    SequenceLoss,
)
from selfemo.kernels.chunks import Rows, row_chunks
from selfemo.kernels.config import AdvantageConfig, LossConfig
from selfemo.kernels.row_threads import on_threads
from selfemo.kernels.vocab_parallel import LOWEST, ShardStats, SoftmaxStats, VocabShard

CHUNK_ELEMENTS = 1 << 18
"""Numbers per scratch, or one row if that is more. 1 MiB of fp32, so that a thread's two scratches stay
in its core's caches.
"""

UNDERFLOW = -1e4
"""exp of anything below this is 0. Clamping to it keeps 0 * (-inf) out of sums if a logit is -inf."""


class TorchBackend:
    """The operations in torch. Runs on any device; "auto" chooses it for CPU tensors."""

    can_keep_exp = True

    def vocab_stats(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        live_T: Tensor | None,
        shard: VocabShard,
        inv_temperature: float,
        keep_exp: bool = False,
    ) -> ShardStats:
        tokens, width = logits_TV.shape[0], shard.real_columns
        max_T = logits_TV.new_zeros(tokens, dtype=torch.float32)
        sum_T, weighted_T, target_T = torch.ones_like(max_T), torch.zeros_like(max_T), torch.zeros_like(max_T)
        if keep_exp:
            logits_TV[:, width:] = 0
        if width == 0:
            return ShardStats(max_T.fill_(LOWEST), sum_T.zero_(), weighted_T, target_T)
        held_T, column_T = shard.local_columns(targets_T)

        def reduce(chunks: Iterator[Rows]) -> None:
            scratch = _Scratch(tokens, width, logits_TV.device)
            for rows in chunks:
                x = scratch.widened(logits_TV[rows, :width])
                target_T[rows] = x.gather(1, column_T[rows, None])[:, 0].masked_fill_(~held_T[rows], 0.0)
                max_T[rows] = largest = x.amax(-1)
                d = _scaled_(torch.sub(x, largest[:, None], out=scratch.first(len(x))), inv_temperature)
                e = torch.exp(d, out=x if keep_exp else scratch.second(len(d)))
                sum_T[rows] = e.sum(-1)
                # a logit of -inf has e = 0 and d = -inf; a NaN logit shows in sum_T
                weighted_T[rows] = d.mul_(e).nansum(-1)

        on_threads(reduce, row_chunks(live_T, tokens, _rows_per_chunk(width)), logits_TV.device)
        return ShardStats(max_T, sum_T, weighted_T, target_T)

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
        tokens, width = logits_TV.shape[0], shard.real_columns
        live_T = (dlogprob_T != 0) | (dentropy_T != 0)
        logits_TV[~live_T] = 0
        logits_TV[:, width:] = 0
        if width == 0:
            return
        held_T, column_T = shard.local_columns(targets_T)
        with_entropy = bool((dentropy_T != 0).any())

        def differentiate(chunks: Iterator[Rows]) -> None:
            scratch = _Scratch(tokens, width, logits_TV.device)
            for rows in chunks:
                g, h = dlogprob_T[rows, None] * inv_temperature, dentropy_T[rows, None] * inv_temperature
                log_sum = softmax.log_sum_T[rows, None]
                source = logits_TV[rows, :width]  # the logits themselves, or a copy where `rows` are indices
                d = _scaled_(scratch.widened(source).sub_(softmax.max_T[rows, None]), inv_temperature)
                # gradient of logit v: g 1[v = target] - p_v (g + h (log p_v + H)),
                # with p_v = exp(d_v) exp(-log_sum)
                negated = (-log_sum).exp().neg_()
                if with_entropy:
                    e = torch.exp(d.clamp_(min=UNDERFLOW), out=scratch.second(len(d)))
                    constant = g + h * (softmax.entropy_T[rows, None] - log_sum)
                    x = d.mul_(h * negated).add_(constant * negated).mul_(e)
                else:
                    x = d.exp_().mul_(g * negated)
                x.scatter_add_(1, column_T[rows, None], g * held_T[rows, None])
                if isinstance(rows, Tensor):
                    logits_TV[rows, :width] = x.to(logits_TV.dtype)
                elif x is not source:
                    source.copy_(x)

        on_threads(differentiate, row_chunks(live_T, tokens, _rows_per_chunk(width)), logits_TV.device)

    def sequence_loss(
        self, logprob_T: Tensor, entropy_T: Tensor, batch: PolicyBatch, config: LossConfig
    ) -> SequenceLoss:
        sequence = _Segments(batch.cu_seqlens)
        mask_T = batch.mask_T
        advantage_T, weight_T = batch.advantage_S[sequence.of_T], batch.token_weight_S[sequence.of_T]
        zero_T = torch.zeros_like(logprob_T)

        log_ratio_T = zero_T if batch.old_T is None else torch.where(mask_T, logprob_T - batch.old_T, 0.0)
        if config.ratio_level == "sequence":
            log_ratio_T = (sequence.sum(log_ratio_T) / batch.tokens_S.clamp(min=1))[sequence.of_T]
        ratio_T = log_ratio_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
        free_T = -advantage_T * ratio_T
        held_T = -advantage_T * ratio_T.clamp(1 - config.clip_low, 1 + config.clip_high)
        policy_T = torch.maximum(free_T, held_T)
        # d ratio / d log-ratio = ratio
        dpolicy_T = torch.where((free_T >= held_T) & (log_ratio_T.abs() <= LOG_RATIO_BOUND), free_T, 0.0)
        dual_T = torch.zeros_like(mask_T)
        if config.dual_clip is not None:
            ceiling_T = -advantage_T * config.dual_clip
            dual_T = (advantage_T < 0) & (ceiling_T < policy_T)
            policy_T, dpolicy_T = (
                torch.where(dual_T, ceiling_T, policy_T),
                torch.where(dual_T, 0.0, dpolicy_T),
            )

        importance_T, truncated_T, gap_T = torch.ones_like(zero_T), torch.zeros_like(mask_T), zero_T
        if batch.rollout_T is not None:
            difference_T = torch.where(
                mask_T, (logprob_T if batch.old_T is None else batch.old_T) - batch.rollout_T, 0.0
            )
            gap_T = difference_T.abs()
            if config.truncated_importance_cap is not None:
                importance_T = difference_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
                truncated_T = importance_T > config.truncated_importance_cap
                importance_T = importance_T.clamp(max=config.truncated_importance_cap)

        kl_T, dkl_T = zero_T, zero_T
        if batch.ref_T is not None:
            kl_T, dkl_T = _kl(torch.where(mask_T, batch.ref_T - logprob_T, 0.0), config.kl_estimator)

        dpolicy_T = torch.where(mask_T, dpolicy_T * importance_T * weight_T, 0.0)
        if config.ratio_level == "sequence":  # the ratio depends on every token of the sequence, equally
            dpolicy_T = (sequence.sum(dpolicy_T) / batch.tokens_S.clamp(min=1))[sequence.of_T]
        dlogprob_T = torch.where(mask_T, dpolicy_T + config.kl_beta * weight_T * dkl_T, 0.0)
        dentropy_T = torch.where(mask_T, -config.entropy_weight * weight_T, 0.0)

        token_loss_T = policy_T * importance_T + config.kl_beta * kl_T - config.entropy_weight * entropy_T
        columns = {
            "loss": token_loss_T * weight_T,
            "tokens": torch.ones_like(zero_T),
            "ratio": ratio_T,
            "clipped_low": (advantage_T < 0) & (ratio_T < 1 - config.clip_low),
            "clipped_high": (advantage_T > 0) & (ratio_T > 1 + config.clip_high),
            "dual_clipped": dual_T,
            "kl": kl_T,
            "entropy": entropy_T,
            "logprob": logprob_T,
            "importance_weight": importance_T,
            "importance_truncated": truncated_T,
            "rollout_gap": gap_T,
        }
        table_TM = torch.stack(
            [torch.where(mask_T, columns[name].float(), 0.0) for name in SEQUENCE_SUMS[:-1]], dim=1
        )
        sums_SM = torch.cat((sequence.sum(table_TM), sequence.max(gap_T).clamp(min=0)[:, None]), dim=1)
        return SequenceLoss(sums_SM, dlogprob_T, dentropy_T)

    def group_advantages(
        self, rewards_SC: Tensor, group_ptr: Tensor, reward_weights_C: Tensor, config: AdvantageConfig
    ) -> GroupStats:
        group = _Segments(group_ptr)
        total_S = (rewards_SC.double() * reward_weights_C.double()).sum(-1)
        count_G, first_G = group.lengths.double(), total_S[group_ptr[:-1]]
        shifted_S = total_S - first_G[group.of_T]  # so that equal rewards give exactly 0
        mean_G = group.sum(shifted_S) / count_G
        deviation_S = shifted_S - mean_G[group.of_T]
        std_G = (group.sum(deviation_S.square()) / (count_G - 1).clamp(min=1)).sqrt()
        scale_G = torch.ones_like(std_G)
        if config.normalise == "std":
            scale_G = torch.where(
                std_G > DEGENERATE * group.max(total_S.abs()), 1 / (std_G + config.epsilon), 0.0
            )
        elif config.normalise == "leave_one_out":
            scale_G = count_G / (count_G - 1).clamp(min=1)
        watched_S = (
            total_S if config.range_component is None else rewards_SC[:, config.range_component].double()
        )
        range_G = group.max(watched_S) + group.max(-watched_S)
        advantage_S = deviation_S * scale_G[group.of_T]
        return GroupStats(advantage_S.float(), (first_G + mean_G).float(), std_G.float(), range_G.float())


def _kl(gap_T: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Return the KL estimate per token and its derivative in logprob; `gap_T` is ref - logprob."""
    if estimator == "k2":
        return 0.5 * gap_T.square(), -gap_T
    bounded_T = gap_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    grown_T = bounded_T.expm1()  # exp(x) - 1 without cancellation near 0, where the policy starts
    return grown_T - bounded_T, torch.where(bounded_T == gap_T, -grown_T, 0.0)


def _scaled_(x: Tensor, factor: float) -> Tensor:
    # most calls have temperature 1: a pass over the chunk saved
    return x if factor == 1.0 else x.mul_(factor)


def _rows_per_chunk(width: int) -> int:
    return max(1, CHUNK_ELEMENTS // width)


class _Scratch:
    """Two fp32 buffers of one thread, each for one chunk; allocated when first used, once per call."""

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        self._shape, self._device = (min(tokens, _rows_per_chunk(width)), width), device
        self._buffers: dict[int, Tensor] = {}

    def widened(self, source: Tensor) -> Tensor:
        """Return `source` in fp32: itself if it is fp32 already, else a copy in the first buffer."""
        return source if source.dtype == torch.float32 else self.first(len(source)).copy_(source)

    def first(self, rows: int) -> Tensor:
        """Return the first `rows` rows of the first buffer."""
        return self._buffer(0, rows)

    def second(self, rows: int) -> Tensor:
        """Return the first `rows` rows of the second buffer."""
        return self._buffer(1, rows)

    def _buffer(self, number: int, rows: int) -> Tensor:
        if number not in self._buffers:
            self._buffers[number] = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        return self._buffers[number][:rows]


class _Segments:
    """Sums and maxima over the consecutive pieces that a pointer array describes. Deterministic on
    every device.
    """

    def __init__(self, pointer: Tensor) -> None:
        self.lengths = pointer.diff()
        self.of_T = torch.repeat_interleave(self.lengths)

    def sum(self, values: Tensor) -> Tensor:
        """Sum each piece; 0 for an empty one."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths, initial=0.0, unsafe=True)

    def max(self, values_T: Tensor) -> Tensor:
        return torch.segment_reduce(values_T, "max", lengths=self.lengths, unsafe=True)
