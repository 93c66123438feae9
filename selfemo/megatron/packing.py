"""Samples into packed micro-batches: no padding between sequences, one cap on tokens, the same count on every rank.

A pipeline schedule hangs when ranks run unequal numbers of micro-batches, so the count is decided once from the lengths of
the whole batch. Samples are dealt longest first to the lightest micro-batch (LPT, Graham 1969). A micro-batch without
samples, and the filler that sequence parallelism needs, are a masked dummy sequence. Under context parallelism every rank packs its
own part of the same micro-batch.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from selfemo.errors import UserError
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.context import ContextShare

PADDING_ID = 0
WHOLE = ContextShare()


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, ready for the model and the loss: this context rank's part of them.

    T tokens held here, N completion tokens that they predict, S sequences with at least one of those: without context parallelism
    all of them, with it perhaps none.
    """

    sample_indices: tuple[int, ...]
    """Index in the global batch of each of the S sequences."""
    token_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    """Positions in the whole sequence."""
    loss_mask_T: torch.Tensor
    """bool: this position predicts a completion token; N are true."""
    target_ids_N: torch.Tensor
    """The completion tokens, sequence by sequence."""
    target_places: tuple[tuple[int, ...], ...]
    """For each of the S sequences, where its tokens of `target_ids_N` stand in its completion."""
    completion_bounds: torch.Tensor
    """int64 [S+1]: where each sequence's tokens start in N; the kernels' cu_seqlens."""
    completion_tokens_S: torch.Tensor
    """int64 [S]: tokens of each whole completion, those of other context ranks included."""
    packed_seq_params: PackedSeqParams
    """Bounds of all sequences, whole and padded, a dummy at the end included: attention divides by the context size itself."""


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
    samples: Sequence[TrainingSample],
    indices: Sequence[int],
    multiple_of: int,
    device: torch.device,
    min_tokens: int = 0,
    context: ContextShare = WHOLE,
) -> MicroBatch:
    """Pack `samples[i] for i in indices`, of which this rank keeps its context share.

    T is filled by a dummy to `min_tokens` and a multiple of `multiple_of` (tensor-parallel size).
    """
    lengths = [context.padded(samples[i].length_tokens - 1) for i in indices]
    wanted = max(sum(lengths), min_tokens * context.size, 1)
    filler = wanted + -wanted % math.lcm(context.pieces, multiple_of * context.size) - sum(lengths)
    token_ids: list[int] = []
    loss_mask: list[bool] = []
    targets: list[int] = []
    places: dict[int, tuple[int, ...]] = {}
    held = [context.positions(length) for length in (*lengths, filler)]
    for index, positions in zip(indices, held):
        sample = samples[index]
        inputs = (sample.prompt_ids + sample.completion_ids)[:-1]  # the last completion token predicts nothing, so it is not fed
        first, end = len(sample.prompt_ids) - 1, len(inputs)
        token_ids += [inputs[p] if p < end else PADDING_ID for p in positions]
        loss_mask += [first <= p < end for p in positions]
        here = tuple(p - first for p in positions if first <= p < end)
        targets += [sample.completion_ids[place] for place in here]
        if here:
            places[index] = here
    token_ids += [PADDING_ID] * len(held[-1])
    loss_mask += [False] * len(held[-1])
    return MicroBatch(
        sample_indices=tuple(places),
        token_ids_T=torch.tensor(token_ids, device=device),
        position_ids_T=torch.tensor([p for positions in held for p in positions], device=device),
        loss_mask_T=torch.tensor(loss_mask, device=device),
        target_ids_N=torch.tensor(targets, dtype=torch.int64, device=device),
        target_places=tuple(places.values()),
        completion_bounds=torch.tensor([0, *map(len, places.values())]).cumsum(0).to(device),
        completion_tokens_S=torch.tensor([len(samples[i].completion_ids) for i in places], dtype=torch.int64, device=device),
        packed_seq_params=_sequence_bounds([*lengths, filler] if filler else lengths, context, device),
    )


def _sequence_bounds(length_tokens: Sequence[int], context: ContextShare, device: torch.device) -> PackedSeqParams:
    """cu_seqlens of whole sequences. Transformer Engine asks for the padded ones by name where context ranks share a sequence.

    They are the same here: padding counts as the end of its sequence, so FlashAttention stays possible (it refuses gaps).
    """
    bounds = torch.tensor([0, *length_tokens]).cumsum(0).to(torch.int32).to(device)
    padded = bounds if context.size > 1 else None
    longest = max(length_tokens)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
