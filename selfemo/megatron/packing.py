"""Samples into packed micro-batches: no padding between sequences, one cap on tokens, the same count on every rank.

A pipeline schedule hangs when ranks run unequal numbers of micro-batches, so the count is decided once from the lengths of
the whole batch. Samples are dealt longest first to the lightest micro-batch (LPT, Graham 1969). A micro-batch without
samples, and the filler that sequence parallelism needs, are a masked dummy sequence.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from selfemo.errors import UserError
from selfemo.grpo.samples import TrainingSample


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, ready for the model and the loss. T tokens, S sequences, N completion tokens."""

    sample_indices: tuple[int, ...]
    """Index of each real sequence in the global batch; S of them. A dummy sequence at the end has none."""
    token_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    loss_mask_T: torch.Tensor
    """bool: this position predicts a completion token; N are true."""
    target_ids_N: torch.Tensor
    """The completion tokens, sequence by sequence."""
    completion_bounds: torch.Tensor
    """int64 [S+1]: where each sequence's completion starts in N; the kernels' cu_seqlens."""
    packed_seq_params: PackedSeqParams


def balance_by_tokens(length_tokens: Sequence[int], max_tokens: int, multiple_of: int) -> list[tuple[int, ...]]:
    """Indices per micro-batch: the fewest that respect `max_tokens`, in a multiple of `multiple_of`; some may be empty.

    Raises:
        UserError: a sample is longer than `max_tokens`.
    """
    for index, length in enumerate(length_tokens):
        if length > max_tokens:
            raise UserError(
                f"sample {index} has {length} tokens, more than train.max_tokens_per_microbatch={max_tokens}: "
                "raise it, or lower corpus.history_turns or selfplay.max_utterance_tokens"
            )
    count = multiple_of * max(1, -(-sum(length_tokens) // (max_tokens * multiple_of)))
    while True:
        bins = _longest_first(length_tokens, count)
        if max(load for load, _ in bins) <= max_tokens:
            return [tuple(sorted(members)) for _, members in bins]
        count += multiple_of


def _longest_first(length_tokens: Sequence[int], count: int) -> list[tuple[int, list[int]]]:
    lightest: list[tuple[int, int, list[int]]] = [(0, slot, []) for slot in range(count)]  # the slot breaks ties: deterministic
    for index in sorted(range(len(length_tokens)), key=lambda i: (-length_tokens[i], i)):
        load, slot, members = heapq.heappop(lightest)
        heapq.heappush(lightest, (load + length_tokens[index], slot, [*members, index]))
    return [(load, members) for load, _, members in sorted(lightest, key=lambda entry: entry[1])]


def pack(
    samples: Sequence[TrainingSample], indices: Sequence[int], multiple_of: int, device: torch.device, min_tokens: int = 0
) -> MicroBatch:
    """Pack `samples[i] for i in indices`; T is filled by a dummy to `min_tokens` and a multiple of `multiple_of` (tensor-parallel size)."""
    chosen = [samples[i] for i in indices]
    # The last completion token predicts nothing, so it is not fed to the model.
    inputs = [(s.prompt_ids + s.completion_ids)[:-1] for s in chosen]
    masks = [[False] * (len(s.prompt_ids) - 1) + [True] * len(s.completion_ids) for s in chosen]
    total = sum(map(len, inputs))
    wanted = max(total, min_tokens, 1)
    filler = wanted + -wanted % multiple_of - total
    if filler:
        inputs.append((0,) * filler)
        masks.append([False] * filler)
    lengths = torch.tensor([0, *map(len, inputs)])
    bounds = lengths.cumsum(0).to(torch.int32).to(device)
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=int(lengths.max()),
        max_seqlen_kv=int(lengths.max()),
    )
    completions = torch.tensor([0, *(len(s.completion_ids) for s in chosen)])
    return MicroBatch(
        sample_indices=tuple(indices),
        token_ids_T=torch.tensor([i for ids in inputs for i in ids], device=device),
        position_ids_T=torch.cat([torch.arange(len(ids)) for ids in inputs]).to(device),
        loss_mask_T=torch.tensor([m for mask in masks for m in mask], device=device),
        target_ids_N=torch.tensor([i for s in chosen for i in s.completion_ids], dtype=torch.int64, device=device),
        completion_bounds=completions.cumsum(0).to(device),
        packed_seq_params=packed,
    )
