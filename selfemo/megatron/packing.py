"""Pack samples into micro-batches: no padding between sequences, one cap on tokens, the same count
on every rank.

A pipeline schedule hangs if ranks run unequal numbers of micro-batches, so the count is decided
once from the lengths of the whole batch. Samples are dealt longest first, each to the lightest
micro-batch (LPT, Graham 1969). A masked dummy sequence stands in for a micro-batch without samples,
and fills T up to the multiple that sequence parallelism needs. Under context parallelism every rank
packs its own part of the same micro-batch.

The samples of a group differ only in their completions, and a prompt is usually much longer than a
completion. With `share_prompts` a group is therefore dealt as one unit and packed behind one copy
of its prompt, to which every completion attends.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate, groupby
from typing import Protocol

import torch

from selfemo.common.errors import UserError
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.attention import Piece, Segments
from selfemo.megatron.context import ContextShare

PADDING_ID = 0
Samples = Sequence[TrainingSample] | Mapping[int, TrainingSample]
"""Samples by their index in a batch."""


class Outlined(Protocol):
    """A sample as far as dealing looks at it: its lengths, and whether it shares a prompt."""

    @property
    def episode(self) -> int:
        """Samples of different episodes share no prompt."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...

    @property
    def completion_ids(self) -> Sequence[int]: ...

    @property
    def length_tokens(self) -> int:
        """Tokens of prompt and completion."""


WHOLE = ContextShare()


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, ready for the model and the loss: this context rank's part of them.

    T tokens held here, N completion tokens that they predict, S sequences with at least one of
    those N. Without context parallelism S counts every sample of the micro-batch; with it S may be
    smaller, or 0.
    """

    sample_indices: tuple[int, ...]
    """Index in the global batch of each of the S sequences."""
    token_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    """Positions in the whole sequence, prompt included."""
    loss_mask_T: torch.Tensor
    """bool: this position predicts a completion token; N are true."""
    target_ids_N: torch.Tensor
    """The completion tokens, sequence by sequence."""
    target_places: tuple[tuple[int, ...], ...]
    """For each of the S sequences, the places in its completion of its tokens in `target_ids_N`."""
    completion_bounds: torch.Tensor
    """int64 [S+1]: the start of each sequence's tokens in N; the kernels' cu_seqlens."""
    completion_tokens_S: torch.Tensor
    """int64 [S]: tokens of each whole completion, including those on other context ranks."""
    packed_seq_params: Segments
    """Bounds of all sequences, whole and padded, with the dummy at the end. Attention divides them
    by the context size itself.
    """


def longest_tokens(batches: Sequence[MicroBatch]) -> int:
    """Return the tokens of the longest micro-batch on this rank."""
    return max(batch.token_ids_T.numel() for batch in batches)


@dataclass(frozen=True)
class Unit:
    """Samples that are packed together: one, or several that share a prompt."""

    sample_indices: tuple[int, ...]
    length_tokens: int
    """Tokens that the model reads; a shared prompt counts once."""


def units(
    samples: Sequence[Outlined],
    share_prompts: bool,
    max_tokens: int,
    parts: int,
    whole: int | None = None,
    first: int = 0,
) -> list[Unit]:
    """Group neighbouring samples of an episode with equal prompts into units if `share_prompts`, else
    make each sample a unit.

    A unit holds at most `max_tokens`, and at most one `parts`-th of the batch, so that a few large
    groups still fill all ranks.

    Args:
        whole: `read_tokens` of the whole batch if `samples` are a part of it; None: they are all.
        first: index of the first sample in the whole batch, for the error.

    Raises:
        UserError: a sample is longer than `max_tokens`.
    """
    for index, sample in enumerate(samples, first):
        if sample.length_tokens > max_tokens:
            raise UserError(
                f"sample {index} has {sample.length_tokens} tokens, more than "
                f"train.max_tokens_per_microbatch={max_tokens}: raise it, or lower "
                "corpus.history_turns or selfplay.max_utterance_tokens"
            )
    if not share_prompts:
        return [Unit((index,), sample.length_tokens) for index, sample in enumerate(samples)]
    limit = min(max_tokens, -(-(read_tokens(samples) if whole is None else whole) // parts))
    return [unit for members in neighbours(samples) for unit in _within(samples, members, limit)]


def read_tokens(samples: Sequence[Outlined]) -> int:
    """Count the tokens that the model reads if neighbours share prompts."""
    completions = sum(len(sample.completion_ids) for sample in samples)
    return completions + sum(len(samples[members[0]].prompt_ids) for members in neighbours(samples))


def neighbours(samples: Sequence[Outlined]) -> Iterator[list[int]]:
    """Yield the indices of neighbours of one episode that have the same prompt: a group, or a view of it."""

    def prompt(index: int) -> tuple[int, Sequence[int]]:
        return samples[index].episode, samples[index].prompt_ids

    return (list(members) for _, members in groupby(range(len(samples)), key=prompt))


def _within(samples: Sequence[Outlined], members: Sequence[int], limit: int) -> Iterator[Unit]:
    """Yield `members`, which share a prompt, as units of at most `limit` tokens, or of one sample."""
    held: list[int] = []
    tokens = 0
    for index in members:
        completion = len(samples[index].completion_ids)
        if held and tokens + completion > limit:
            yield Unit(tuple(held), tokens)
            held = []
        tokens = tokens + completion if held else samples[index].length_tokens
        held.append(index)
    yield Unit(tuple(held), tokens)


def balance_by_tokens(
    length_tokens: Sequence[int], max_tokens: int, multiple_of: int, at_least: int = 0
) -> list[tuple[int, ...]]:
    """Deal samples into the fewest micro-batches that respect `max_tokens`, come in a multiple of
    `multiple_of` and are `at_least` as many.

    No length may exceed `max_tokens`; `units` raises if one does.

    Returns:
        Sample indices per micro-batch; some may be empty.
    """
    fewest = max(at_least, -(-sum(length_tokens) // max_tokens), 1)
    count = fewest + -fewest % multiple_of
    while True:
        bins = _longest_first(length_tokens, count)
        if max(load for load, _ in bins) <= max_tokens:
            return [tuple(sorted(members)) for _, members in bins]
        count += multiple_of


def _longest_first(length_tokens: Sequence[int], count: int) -> list[tuple[int, list[int]]]:
    lightest: list[tuple[int, int, list[int]]] = [
        (0, slot, []) for slot in range(count)
    ]  # the slot breaks ties, so the result is deterministic
    for index in sorted(range(len(length_tokens)), key=lambda i: (-length_tokens[i], i)):
        load, slot, members = heapq.heappop(lightest)
        heapq.heappush(lightest, (load + length_tokens[index], slot, [*members, index]))
    return [(load, members) for load, _, members in sorted(lightest, key=lambda entry: entry[1])]


@dataclass(frozen=True)
class _Segment:
    """Consecutive tokens of a micro-batch, before context ranks cut them."""

    token_ids: tuple[int, ...]
    first_position: int = 0
    sample_index: int | None = None
    """The sample whose completion tokens it predicts at its end. None: a shared prompt, or filler."""
    predicting: int = 0
    """Number of tokens at the end that predict a completion token."""
    prompt: int | None = None
    """First token, in the micro-batch, of the prompt that this segment continues; that prompt has
    `first_position` tokens. None: it continues none.
    """


def pack(
    samples: Samples,
    indices: Sequence[int],
    multiple_of: int,
    device: torch.device,
    min_tokens: int = 0,
    context: ContextShare = WHOLE,
    share_prompts: bool = False,
    with_pieces: bool = False,
) -> MicroBatch:
    """Pack `samples[i] for i in indices` into a micro-batch and keep this rank's context share.

    A dummy fills T to `min_tokens` and to a multiple of `multiple_of` (the tensor-parallel size).
    With `share_prompts`, neighbours with equal prompts share one copy. `with_pieces` fills
    Segments.pieces and asks for whole sequences.

    Raises:
        ValueError: `share_prompts` with a context share: a shared prompt is not cut.
    """
    if share_prompts and context.size > 1:
        raise ValueError(f"share_prompts does not cut sequences, but {context.size} context ranks share each")
    segments = _segments(samples, indices, share_prompts)
    total = sum(context.padded(len(segment.token_ids)) for segment in segments)
    wanted = max(total, min_tokens * context.size, 1)
    if filler := wanted + -wanted % math.lcm(context.pieces, multiple_of * context.size) - total:
        segments.append(_Segment((PADDING_ID,) * filler))
    lengths = [context.padded(len(segment.token_ids)) for segment in segments]
    attention = _attention_bounds(segments, lengths, context, share_prompts, device)
    if with_pieces:
        attention.pieces = tuple(_pieces(segments, share_prompts, device))
    token_ids: list[int] = []
    position_ids: list[int] = []
    loss_mask: list[bool] = []
    targets: list[int] = []
    places: dict[int, tuple[int, ...]] = {}
    for segment, length in zip(segments, lengths):
        held, end = context.positions(length), len(segment.token_ids)
        first = end - segment.predicting
        token_ids += [segment.token_ids[p] if p < end else PADDING_ID for p in held]
        position_ids += [segment.first_position + p for p in held]
        loss_mask += [first <= p < end for p in held]
        here = tuple(p - first for p in held if first <= p < end)
        if here and segment.sample_index is not None:
            places[segment.sample_index] = here
            targets += [samples[segment.sample_index].completion_ids[place] for place in here]
    return MicroBatch(
        sample_indices=tuple(places),
        token_ids_T=torch.tensor(token_ids, device=device),
        position_ids_T=torch.tensor(position_ids, device=device),
        loss_mask_T=torch.tensor(loss_mask, device=device),
        target_ids_N=torch.tensor(targets, dtype=torch.int64, device=device),
        target_places=tuple(places.values()),
        completion_bounds=torch.tensor([0, *map(len, places.values())]).cumsum(0).to(device),
        completion_tokens_S=torch.tensor(
            [len(samples[i].completion_ids) for i in places], dtype=torch.int64, device=device
        ),
        packed_seq_params=attention,
    )


def _segments(samples: Samples, indices: Sequence[int], share_prompts: bool) -> list[_Segment]:
    """Cut the samples into segments.

    The last completion token predicts nothing, so it is not fed to the model. A shared prompt ends
    one token early: its last token predicts a different token for each sample, so each sample's
    segment begins with it.
    """
    segments: list[_Segment] = []
    place = 0
    for prompt_ids, group in groupby(indices, key=lambda index: samples[index].prompt_ids):
        sharing, begin, known = list(group), place, len(prompt_ids) - 1
        completions = [samples[index].completion_ids for index in sharing]
        if not share_prompts or len(sharing) == 1 or known == 0:
            new = [
                _Segment((prompt_ids + c)[:-1], 0, index, len(c)) for index, c in zip(sharing, completions)
            ]
        else:
            new = [_Segment(prompt_ids[:-1])]
            new += [
                _Segment((prompt_ids[-1:] + c)[:-1], known, index, len(c), begin)
                for index, c in zip(sharing, completions)
            ]
        segments += new
        place += sum(len(segment.token_ids) for segment in new)
    return segments


def _attention_bounds(
    segments: Sequence[_Segment],
    lengths: Sequence[int],
    context: ContextShare,
    share_prompts: bool,
    device: torch.device,
) -> Segments:
    """Compute the rows that each segment attends to.

    Without shared prompts also fill the bounds that Transformer Engine and the rotary embedding of
    packed batches read. Transformer Engine asks for padded bounds by name if context ranks share a
    sequence. They equal the others here: padding counts as the end of its sequence, so
    FlashAttention stays possible (it refuses gaps).
    """
    seen = [
        length + (0 if segment.prompt is None else segment.first_position)
        for segment, length in zip(segments, lengths)
    ]
    query_bounds, key_bounds = (
        torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device) for sizes in (lengths, seen)
    )
    key_rows = None
    if any(segment.prompt is not None for segment in segments):
        begins = [0, *accumulate(lengths)]
        key_rows = torch.cat(
            [rows for segment, begin in zip(segments, begins) for rows in _rows(segment, begin)]
        ).to(device)
    cu_seqlens = None if share_prompts else query_bounds
    padded = cu_seqlens if context.size > 1 else None
    return Segments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(seen),
        query_bounds=query_bounds,
        key_rows=key_rows,
        key_bounds=key_bounds,
    )


def _pieces(segments: Sequence[_Segment], share_prompts: bool, device: torch.device) -> Iterator[Piece]:
    """Yield the runs of segments that begin with one which continues no prompt, unless it is one itself."""
    begin = 0
    for first, run in enumerate(segments):
        if run.prompt is not None:
            continue
        end = next((i for i, s in enumerate(segments) if i > first and s.prompt != begin), len(segments))
        members = [replace(s, prompt=None if s.prompt is None else 0) for s in segments[first:end]]
        lengths = [len(segment.token_ids) for segment in members]
        told = blake2b(digest_size=16)
        for segment in members:
            told.update(array("q", [len(segment.token_ids), segment.first_position, *segment.token_ids]))
        rows = slice(begin, begin + sum(lengths))
        alone = _attention_bounds(members, lengths, WHOLE, share_prompts, device)
        yield Piece(rows, told.digest(), alone)
        begin = rows.stop


def _rows(segment: _Segment, begin: int) -> tuple[torch.Tensor, ...]:
    own = torch.arange(begin, begin + len(segment.token_ids))
    if segment.prompt is None:
        return (own,)
    return torch.arange(segment.prompt, segment.prompt + segment.first_position), own
