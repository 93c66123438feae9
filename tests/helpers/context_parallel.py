"""Replace Transformer Engine's attention where context parallelism is tested on CPU, and run the
tests' steps with it.

Keys and values of all context ranks are gathered and put in order, and this rank's queries attend
to those before them. megatron-core, not the product, says which positions a rank holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rope_utils import _get_thd_freqs_on_this_cp_rank
from megatron.core.packed_seq_params import PackedSeqParams

from selfemo.config.schema import ParallelConfig
from selfemo.megatron import layer_spec
from selfemo.megatron.parallel import enter_layout
from tests.helpers import parity
from tests.helpers.parity import Options, Trace

OPTIONS = Options(max_tokens=66, long_prompts=2, learning_rate=3e-3)
"""So few tokens that a micro-batch holds no other sample beside a long prompt.

At parity.LEARNING_RATE the first step overshoots, and the second gradient shows rounding threefold.
"""
LAYOUTS = {
    "CP2": (2, ParallelConfig(context=2)),
    "CP2 +DO +recompute": (2, ParallelConfig(context=2, distributed_optimizer=True, recompute=True)),
    "CP2 TP2 +SP": (4, ParallelConfig(context=2, tensor=2, sequence_parallel=True)),
    "CP2 DP2 +DO": (4, ParallelConfig(context=2, distributed_optimizer=True)),
    "CP2 PP2 VPP2": (4, ParallelConfig(context=2, pipeline=2, virtual_pipeline=2)),
}
"""Name: (processes, layout)."""
SLOW = ("CP2", "CP2 TP2 +SP", "CP2 DP2 +DO", "CP2 PP2 VPP2")
"""Layouts that `make test` leaves to `make test-layouts`."""


def positions_held(size: int, rank: int, padded_tokens: int) -> torch.Tensor:
    """Ask megatron-core's rotary embedding for the positions of a rank's tokens: int64
    [padded_tokens / size].
    """
    return _get_thd_freqs_on_this_cp_rank(
        rank, size, torch.empty(padded_tokens // size), torch.arange(padded_tokens)
    )


class _Gather(torch.autograd.Function):
    """Gathers [T, heads, D] of every context rank to [size, T, heads, D].

    A gradient is the sum over all ranks.
    """

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        group = parallel_state.get_context_parallel_group()
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        group = parallel_state.get_context_parallel_group()
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=group)
        return gradient[group.rank()]


class GatheredAttention(torch.nn.Module):
    """Takes the place and the arguments of PackedCausalAttention."""

    def __init__(
        self, config: Any, layer_number: int, *_: Any, softmax_scale: float | None = None, **__: Any
    ) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        packed_seq_params: PackedSeqParams,
        **__: Any,
    ) -> torch.Tensor:
        size, rank = (
            parallel_state.get_context_parallel_world_size(),
            parallel_state.get_context_parallel_rank(),
        )
        lengths = [end - begin for begin, end in pairwise(packed_seq_params.cu_seqlens_q.tolist())]
        local = [length // size for length in lengths]
        assert sum(local) == len(query)
        queries = query.split(local)
        keys, values = (_Gather.apply(x).split(local, dim=1) for x in (key, value))
        outputs = []
        for length, q, k, v in zip(lengths, queries, keys, values):
            held = [positions_held(size, other, length) for other in range(size)]
            order = torch.cat(held).argsort()
            whole_k, whole_v = (x.flatten(0, 1)[order].transpose(0, 1)[None] for x in (k, v))
            sees = held[rank][:, None] >= torch.arange(length)
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    q.transpose(0, 1)[None],
                    whole_k,
                    whole_v,
                    attn_mask=sees,
                    scale=self.softmax_scale,
                    enable_gqa=True,
                )[0]
            )
        return torch.cat(outputs, dim=1).transpose(0, 1).reshape(len(query), -1)


@contextmanager
def gathered_attention() -> Iterator[None]:
    """Build models inside with GatheredAttention."""
    with patch.object(layer_spec, "PackedCausalAttention", GatheredAttention):
        yield


def three_steps(hf_dir: str, parallel: ParallelConfig, options: Options) -> Trace:
    """Run parity.three_steps without the CPU's refusal."""
    with gathered_attention():
        return parity.three_steps(hf_dir, parallel, options, enter_layout)


def three_sft_steps(hf_dir: str, parallel: ParallelConfig, options: Options) -> Trace:
    """Run parity.three_sft_steps without the CPU's refusal."""
    with gathered_attention():
        return parity.three_sft_steps(hf_dir, parallel, options, enter_layout)


def logprobs(hf_dir: str, parallel: ParallelConfig, options: Options) -> dict[tuple[int, int], float]:
    """Compute this rank's logprobs by (sample, place in its completion)."""
    with gathered_attention(), parity.learner(hf_dir, parallel, options, enter_layout) as model:
        plan = model.plan(parity.samples(model.architecture.vocab_size, options.long_prompts))
        found = {}
        for batch, logprob_N in zip(plan, model.logprobs(plan)):
            places = [
                (index, place)
                for index, here in zip(batch.sample_indices, batch.target_places)
                for place in here
            ]
            found.update(zip(places, logprob_N.tolist(), strict=True))
        return found
