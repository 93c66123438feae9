"""Lists the workloads of the kernels: each one's inputs, unavoidable bytes and competing formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfemo.kernels import AdvantageConfig
from selfemo.kernels.backend import Backend, PolicyBatch
from selfemo.kernels.torch_backend import TorchBackend
from selfemo.kernels.vocab_parallel import SoftmaxStats, VocabShard
from tools.kernels.benchmark.formulas import (
    GRPO,
    LOGITS,
    PROJECTION,
    Batch,
    Formula,
    compiled,
    log_softmax_entropy,
)
from tools.kernels.benchmark.measure import Sizes, inputs

OURS, EAGER, COMPILED = "selfemo", "eager torch", "torch.compile"


@dataclass(frozen=True)
class Workload:
    """One operation at one size."""

    name: str
    formulas: tuple[Formula, ...]
    leaves: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    nbytes: int | None = None
    flops: int | None = None


Made = tuple[Tensor, Batch]
"""Logits and the rest, as `inputs` makes them."""


def workloads(sizes: Sizes, backend: Backend) -> Iterator[Workload]:
    """Yield the six workloads at one number of tokens, the cheapest first."""
    (logits_TV,), batch = inputs(replace(sizes, workload="logits"))
    for kernel in KERNELS.values():
        yield kernel(sizes, (logits_TV, batch), backend)
    yield Workload(
        "forward and backward", LOGITS, (logits_TV.requires_grad_(),), (batch,), 3 * logits_TV.nbytes
    )
    del logits_TV
    both, batch = inputs(replace(sizes, workload="projection"))
    flops = 6 * sizes.tokens * sizes.columns * sizes.hidden
    yield Workload(
        "fused projection", PROJECTION, tuple(leaf.requires_grad_() for leaf in both), (batch,), flops=flops
    )


def _three(ours: Callable[..., Any], eager: Callable[..., Any]) -> tuple[Formula, ...]:
    def without_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.no_grad()(function)

    return (
        Formula(OURS, without_gradient(ours)),
        Formula(EAGER, without_gradient(eager)),
        Formula(COMPILED, without_gradient(lambda *given: compiled(eager)(*given)), device="cuda"),
    )


def _vocab_stats(_: Sizes, made: Made, backend: Backend) -> Workload:
    logits_TV, batch = made
    shard = VocabShard(0, logits_TV.shape[1], logits_TV.shape[1], None)

    def ours(logits_TV: Tensor, targets_T: Tensor) -> Any:
        return backend.vocab_stats(logits_TV, targets_T, None, shard, 1.0)

    formulas = _three(ours, log_softmax_entropy)
    return Workload("vocab_stats", formulas, (logits_TV,), (batch.targets_T,), logits_TV.nbytes)


def _dlogits(_: Sizes, made: Made, backend: Backend) -> Workload:
    logits_TV, batch = made
    shard = VocabShard(0, logits_TV.shape[1], logits_TV.shape[1], None)
    tokens, device = logits_TV.shape[0], logits_TV.device
    ones_T = torch.ones(tokens, device=device)
    # any statistics do: the time does not depend on them
    stats = SoftmaxStats(12 * ones_T, 4 * ones_T, -8 * ones_T, 5 * ones_T)

    def ours(logits_TV: Tensor, batch: Batch) -> None:
        backend.dlogits_(logits_TV, batch.targets_T, stats, batch.dlogprob_T, batch.dentropy_T, shard, 1.0)

    def eager(logits_TV: Tensor, batch: Batch) -> Tensor:
        g_T1, h_T1 = batch.dlogprob_T[:, None], batch.dentropy_T[:, None]
        log_p_TV = logits_TV.float() - (stats.max_T + stats.log_sum_T)[:, None]
        d_TV = -log_p_TV.exp() * (g_T1 + h_T1 * (log_p_TV + stats.entropy_T[:, None]))
        return d_TV.scatter_add(1, batch.targets_T[:, None], g_T1).to(logits_TV.dtype)

    return Workload("dlogits", _three(ours, eager), (logits_TV,), (batch,), 2 * logits_TV.nbytes)


def _sequence_loss(sizes: Sizes, _: Made, backend: Backend) -> Workload:
    tokens, sequences = sizes.tokens, max(1, sizes.tokens // 256)
    generator = torch.Generator(sizes.device).manual_seed(0)
    logprob_T, entropy_T, old_T, ref_T, rollout_T = -torch.rand(
        5, tokens, device=sizes.device, generator=generator
    )
    ones_S = torch.ones(sequences, device=sizes.device)
    borders = torch.arange(sequences + 1, device=sizes.device) * (tokens // sequences)
    batch = PolicyBatch(
        old_T,
        ref_T,
        rollout_T,
        torch.ones(tokens, dtype=torch.bool, device=sizes.device),
        borders,
        ones_S,
        ones_S / tokens,
        ones_S * (tokens // sequences),
    )
    config = replace(GRPO, kl_beta=0.02, truncated_importance_cap=2.0)

    def ours(logprob_T: Tensor, entropy_T: Tensor, batch: PolicyBatch) -> Any:
        return backend.sequence_loss(logprob_T, entropy_T, batch, config)

    def eager(logprob_T: Tensor, entropy_T: Tensor, batch: PolicyBatch) -> Any:
        return TorchBackend().sequence_loss(logprob_T, entropy_T, batch, config)

    formulas = _three(ours, eager)
    return Workload("sequence_loss", formulas, (logprob_T, entropy_T), (batch,), 29 * tokens)


def _group_advantages(sizes: Sizes, _: Made, backend: Backend) -> Workload:
    samples, config = sizes.tokens, AdvantageConfig()
    generator = torch.Generator(sizes.device).manual_seed(0)
    rewards_SC = torch.rand(samples, 3, device=sizes.device, generator=generator)
    extra = (torch.arange(0, samples + 1, 8, device=sizes.device), torch.ones(3, device=sizes.device), config)
    formulas = _three(backend.group_advantages, TorchBackend().group_advantages)
    return Workload("group_advantages", formulas, (rewards_SC,), extra, 16 * samples)


KERNELS: dict[str, Callable[[Sizes, Made, Backend], Workload]] = {
    "group_advantages": _group_advantages,
    "sequence_loss": _sequence_loss,
    "vocab_stats": _vocab_stats,
    "dlogits": _dlogits,
}
"""Workload of each kernel alone, under its name in `backend.Backend` without an underscore."""
