"""Estimate the seconds of one iteration by phase, from a roofline with few parameters.

Training: on the slowest pipeline stage, each micro-batch takes its matrix products at a fixed share
of peak, a constant per layer for launching kernels (which makes short micro-batches slow), and
tensor-parallel collectives; the pipeline adds its bubble. Every term can be read in the code below.
What is left out (overlap of communication, uneven data-parallel ranks) errs in both directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from selfemo.config.layout import Layout
from selfemo.models.architecture import DTYPE_BYTES, Architecture
from selfemo.planning.generation import Engine, generation_seconds, rollout_seconds
from selfemo.planning.hardware import Gpu
from selfemo.planning.parameters import layer_elements, layers_on, trained_layers_on, trains_head
from selfemo.planning.rates import Rates
from selfemo.planning.sync import SyncBytes
from selfemo.planning.trainer_bytes import GRADIENT_BYTES, trainer_bytes
from selfemo.planning.workload import Lengths, Workload


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one iteration, by phase."""

    generate: float
    logprob: float
    train: float
    sync: float
    other: float
    teacher: float = 0.0
    """An iteration's share of the reading where its round begins, weight syncs for it included."""

    @property
    def total(self) -> float:
        """Seconds of the whole iteration; phases follow one another."""
        return self.generate + self.logprob + self.train + self.sync + self.other + self.teacher


@dataclass(frozen=True)
class Pass:
    """Micro-batches of one pass over the batch, on each data-parallel rank."""

    microbatches: int
    tokens: float
    """Tokens per micro-batch, padding included."""
    sequence: float
    """Mean sequence length that attention reads, in tokens."""
    head_tokens: float
    """Tokens per micro-batch that go through the output layer."""


def step_seconds(
    architecture: Architecture,
    layout: Layout,
    workload: Workload,
    engine: Engine,
    sync: SyncBytes,
    sync_path: str,
    dtype: str,
    gpu: Gpu,
    rates: Rates,
) -> StepSeconds:
    """Estimate one iteration. `sync_path` is "direct" or "checkpoint"."""
    generate = rollout_seconds(workload.calls, workload.episodes, engine, layout.replicas, gpu, rates)
    train_pass, logprob_pass = passes(workload, layout)
    # Supervised micro-batches follow the others in one schedule, so they add no bubble.
    supervised = supervised_pass(workload, layout)
    train = workload.optimizer_steps * (
        pass_seconds(architecture, layout, train_pass, True, gpu, rates)
        + supervised.microbatches * microbatch_seconds(architecture, layout, supervised, True, gpu, rates)
        + update_seconds(architecture, layout, dtype, gpu, rates)
    )
    one_logprob = workload.optimizer_steps * pass_seconds(
        architecture, layout, logprob_pass, False, gpu, rates
    )
    one_sync = sync_seconds(layout, sync, sync_path, gpu, rates)
    return StepSeconds(
        generate=generate,
        logprob=workload.logprob_passes * one_logprob,
        train=train,
        sync=one_sync,
        other=rates.step_s,
        teacher=_teacher_seconds(workload, engine, layout, one_sync, gpu, rates),
    )


def _teacher_seconds(
    workload: Workload, engine: Engine, layout: Layout, one_sync: float, gpu: Gpu, rates: Rates
) -> float:
    """Estimate an iteration's share of what a teacher takes where a round begins."""
    teacher, call = workload.teacher, workload.teacher_call
    if teacher is None or call is None or not call.samples:
        return 0.0
    reading = generation_seconds(call, engine, layout.replicas, gpu, rates)
    return teacher.rounds_per_iteration * reading + teacher.syncs_per_iteration * one_sync


def passes(workload: Workload, layout: Layout) -> tuple[Pass, Pass]:
    """Lay out the training pass and the logprob pass of one optimizer step."""
    lengths = workload.lengths
    samples = workload.trained_samples / workload.optimizer_steps / layout.data
    share = lengths.mean_completion / lengths.mean_total if workload.head_on_completions_only else 1.0
    if workload.microbatch_tokens is None:
        train = Pass(math.ceil(samples), lengths.mean_total, lengths.mean_total, lengths.mean_total * share)
    else:
        train = _packed(samples, lengths, share, workload.microbatch_tokens, layout)
    if workload.logprob_batch is None:
        return train, train
    padded = lengths.mean_total * lengths.padding(workload.logprob_batch)
    tokens = workload.logprob_batch * padded
    return train, Pass(math.ceil(samples / workload.logprob_batch), tokens, padded, tokens * share)


def supervised_pass(workload: Workload, layout: Layout) -> Pass:
    """Lay out the supervised examples of one optimizer step; no micro-batch if there are none."""
    lengths, cap = workload.supervised_lengths, workload.microbatch_tokens
    if lengths is None or cap is None:
        return Pass(0, 0.0, 0.0, 0.0)
    share = lengths.mean_completion / lengths.mean_total
    found = _packed(workload.supervised_examples / layout.data, lengths, share, cap, layout)
    if layout.virtual_pipeline == 1:
        return found
    # the interleaved schedule pads them to the length of the others
    return replace(found, tokens=max(found.tokens, passes(workload, layout)[0].tokens))


def _packed(samples: float, lengths: Lengths, share: float, cap: int, layout: Layout) -> Pass:
    """Pack a data-parallel rank's samples into the fewest micro-batches of at most `cap` tokens.

    Args:
        share: share of the tokens that go through the output layer.
    """
    count = max(1, math.ceil(samples * lengths.mean_total / cap))
    if layout.virtual_pipeline > 1:
        count = math.ceil(count / layout.pipeline) * layout.pipeline
    tokens = samples * lengths.mean_total / count
    return Pass(count, tokens, lengths.mean_total, tokens * share)


def busiest_head_tokens(layout: Layout, tokens: float, head_tokens: float) -> float:
    """Most tokens of a micro-batch that one context rank sends through the output layer.

    Completions end their sequences, and the last piece of every sequence lies on the same rank, so
    one rank may hold them all. But no rank holds more than its share of all tokens.
    """
    return min(head_tokens, tokens / layout.context)


def pass_seconds(
    architecture: Architecture, layout: Layout, batch: Pass, with_backward: bool, gpu: Gpu, rates: Rates
) -> float:
    """Estimate the seconds of one pass over a data-parallel rank's micro-batches, through the whole
    pipeline."""
    bubble = (layout.pipeline - 1) / layout.virtual_pipeline
    per_microbatch = microbatch_seconds(architecture, layout, batch, with_backward, gpu, rates)
    return (batch.microbatches + bubble) * per_microbatch


def microbatch_seconds(
    architecture: Architecture, layout: Layout, batch: Pass, with_backward: bool, gpu: Gpu, rates: Rates
) -> float:
    """Estimate the seconds that one micro-batch takes on the slowest pipeline stage."""
    layers, trained, again = layers_on(architecture, layout), 0, 0.0
    if with_backward:  # the last stage has most layers that are not frozen
        trained = trained_layers_on(architecture, layout, layout.pipeline - 1)
        again = 1.0 if layout.recompute else 0.0
    tokens = batch.tokens / layout.context
    matrix = 2 * layer_elements(architecture) * tokens / layout.tensor
    # two causal products: 2 * 2 * s / 2 per row
    attention = 2 * batch.sequence * architecture.query_size * tokens / layout.tensor
    head_tokens = busiest_head_tokens(layout, batch.tokens, batch.head_tokens)
    head = 2 * architecture.vocab_size * architecture.hidden_size * head_tokens / layout.tensor
    head_gradients = (2.0 if trains_head(architecture, layout) else 1.0) if with_backward else 0.0
    work = layers * (matrix + attention) + trained * (matrix * (again + 2) + attention * (again + 2.5))
    work += head * (1.0 + head_gradients)  # on the last stage, which is therefore the slowest
    per_microbatch = work / (gpu.flops * rates.gemm_efficiency)
    per_microbatch += (layers + trained * (again + 2)) * rates.layer_s / 3
    per_microbatch += (layers + trained * (again + 1)) * _tensor_collectives(
        architecture, layout, tokens, gpu, rates
    )
    return per_microbatch


def bubble_share(workload: Workload, layout: Layout) -> float:
    """Share of a training pass in which a pipeline stage waits for others."""
    bubble = (layout.pipeline - 1) / layout.virtual_pipeline
    microbatches = passes(workload, layout)[0].microbatches + supervised_pass(workload, layout).microbatches
    return bubble / (microbatches + bubble)


def update_seconds(architecture: Architecture, layout: Layout, dtype: str, gpu: Gpu, rates: Rates) -> float:
    """Estimate the seconds to reduce gradients over the ranks that hold the same weights, and to
    update once."""
    held = trainer_bytes(architecture, layout, layout.pipeline - 1, 0, dtype)
    seconds = (
        2
        * (held.optimizer + held.gradients / layout.weight_copies)
        / (gpu.memory_rate * rates.memory_efficiency)
    )
    if layout.weight_copies > 1:
        link = _link(layout, layout.weight_copies, layout.tensor, gpu) * rates.link_efficiency
        ring = (layout.weight_copies - 1) / layout.weight_copies
        gathered = held.gradients  # the second half of an all-reduce
        if layout.distributed_optimizer:
            gathered = held.gradients // GRADIENT_BYTES * DTYPE_BYTES[dtype]  # the trained weights
        seconds += ring * (held.gradients + gathered) / link
    return seconds


def sync_seconds(layout: Layout, sync: SyncBytes, path: str, gpu: Gpu, rates: Rates) -> float:
    """Estimate the seconds to move the weights into the engines."""
    if path == "checkpoint":
        return sync.engine_weights / rates.refit_rate
    link = (
        _link(
            layout, layout.tensor * layout.pipeline, layout.weight_copies if layout.pipeline > 1 else 1, gpu
        )
        * rates.link_efficiency
    )
    copied = 2 * sync.engine_weights / (gpu.memory_rate * rates.memory_efficiency)
    return rates.direct_sync_s + sync.received_max / link + copied


def _tensor_collectives(
    architecture: Architecture, layout: Layout, tokens: float, gpu: Gpu, rates: Rates
) -> float:
    """Estimate the seconds of one layer's collectives in one direction.

    They are two all-reduces of the activations, or their halves with sequence parallelism.
    """
    if layout.tensor == 1:
        return 0.0
    link = _link(layout, layout.tensor, 1, gpu) * rates.link_efficiency
    volume = (
        2 * (layout.tensor - 1) / layout.tensor * tokens * architecture.hidden_size * DTYPE_BYTES["bfloat16"]
    )
    return 2 * (volume / link + rates.all_reduce_s)


def _link(layout: Layout, group_size: int, stride: int, gpu: Gpu) -> float:
    return gpu.network_rate if layout.spans_nodes(group_size, stride) else gpu.nvlink_rate
