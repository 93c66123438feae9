"""Defines the samples of one optimizer step as a rank has them: its part of a batch that all ranks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfemo.config.schema import TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import BatchCounts
from selfemo.megatron.packing import Outlined, balance_by_tokens, units
from selfemo.megatron.parallel import RankLayout


@dataclass(frozen=True)
class DealtBatch:
    """The samples of one optimizer step, as a rank has them.

    A sample of weight 0 adds exactly nothing to loss or gradient, so the model does not read it, and it
    has no index; `counts` include it.
    """

    samples: Mapping[int, TrainingSample] = field(repr=False)
    """Those of this rank's micro-batches, by index in the whole batch."""
    micro_batches: tuple[tuple[int, ...], ...]
    """Indices of the samples of each of this rank's micro-batches."""
    counts: BatchCounts
    """Of the whole batch."""
    trained_samples: int
    """Samples of the whole batch that the model reads."""
    trained_tokens: int
    """Their completion tokens."""
    total_weight: float = 0.0
    """Sum of the weights of the whole batch's samples; 0 if no loss is divided by it."""
    moved_samples: int = 0
    """Those of them that a rank trains on whose engine did not make them."""
    moved_bytes: int = 0
    """Bytes that ranks sent each other for that, over all of them."""


def batch_counts(samples: Sequence[Outlined]) -> BatchCounts:
    """Count a batch's sequences and completion tokens, over all ranks."""
    return BatchCounts(sequences=len(samples), tokens=sum(len(s.completion_ids) for s in samples))


def samples_to_write(
    batch: Sequence[TrainingSample] | DealtBatch, layout: RankLayout
) -> Mapping[int, TrainingSample]:
    """Return the samples that this rank writes of a batch that is kept, by index; one rank writes each."""
    if isinstance(batch, DealtBatch):
        is_first = layout.tensor_rank == layout.context_rank == layout.pipeline_rank == 0
        return batch.samples if is_first else {}
    return dict(enumerate(batch)) if layout.is_main else {}


def batch_of(group: int, updates: int) -> int:
    """Return which of an iteration's batches a group belongs to, by its number in the iteration.

    Each round over an even number of batches begins one batch later than the round before. The roles take
    turns, so the groups of one role would otherwise all fall to the same batches.
    """
    return (group + (group // updates if updates % 2 == 0 else 0)) % updates


def shares_prompts(train: TrainConfig, layout: RankLayout) -> bool:
    """Tell whether samples share the copy of a prompt: context ranks cut sequences, and cannot cut that."""
    return train.share_prompts and layout.sizes.context == 1


def batches_at_once(layout: RankLayout) -> int:
    """Return the number that a rank's micro-batches come in a multiple of."""
    return layout.sizes.pipeline if layout.sizes.virtual_pipeline > 1 else 1


def whole_batch(samples: Sequence[TrainingSample], train: TrainConfig, layout: RankLayout) -> DealtBatch:
    """Take this rank's part of a batch that every rank holds whole.

    Raises:
        UserError: a sample is longer than train.max_tokens_per_microbatch.
    """
    counts = batch_counts(samples)
    return DealtBatch(
        samples=dict(enumerate(samples)),
        micro_batches=own_micro_batches(samples, train, layout),
        counts=counts,
        trained_samples=counts.sequences,
        trained_tokens=counts.tokens,
        total_weight=sum(sample.weight for sample in samples),
    )


def own_micro_batches(
    samples: Sequence[Outlined], train: TrainConfig, layout: RankLayout
) -> tuple[tuple[int, ...], ...]:
    """Deal a batch into micro-batches, and return the indices of the samples of this rank's.

    Raises:
        UserError: a sample is longer than train.max_tokens_per_microbatch.
    """
    max_tokens, multiple_of = train.max_tokens_per_microbatch, layout.sizes.data * batches_at_once(layout)
    dealt = units(samples, shares_prompts(train, layout), max_tokens, multiple_of)
    bins = balance_by_tokens([unit.length_tokens for unit in dealt], max_tokens, multiple_of)
    return tuple(
        tuple(i for place in places for i in dealt[place].sample_indices)
        for places in bins[layout.data_rank :: layout.sizes.data]
    )
