"""Estimate how long the engines take for a batch, by simulating continuous batching under a
memory-bandwidth roofline.

A decode step reads the weights once and the keys and values of every live sequence. Its time
therefore falls as sequences end, but never below reading the weights plus the engine's own overhead
per step: the last few sequences of a batch decode no faster than that. The simulation steps from
one completion to the next and sums the steps between them in closed form.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from selfemo.models.architecture import DTYPE_BYTES, Architecture
from selfemo.planning.hardware import Gpu
from selfemo.planning.parameters import total_elements
from selfemo.planning.rates import Rates
from selfemo.planning.workload import GenerationCall

LARGEST_SIMULATED = 2048
"""Sequences per engine simulated one by one; the time of a larger batch is scaled up from this many."""


@dataclass(frozen=True)
class Engine:
    """One vLLM engine: its model, its ranks and its limits."""

    architecture: Architecture
    tensor: int
    dtype: str
    kv_cache_bytes: int
    """Size of the key-value cache per rank, in bytes."""
    max_num_seqs: int

    @property
    def weight_bytes(self) -> float:
        """Bytes that each rank reads per decode step. An untied embedding is looked up, not read,
        so it does not count."""
        looked_up = (
            0
            if self.architecture.tie_word_embeddings
            else self.architecture.vocab_size * self.architecture.hidden_size
        )
        return (total_elements(self.architecture) - looked_up) * DTYPE_BYTES[self.dtype] / self.tensor

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values on each rank."""
        return self.architecture.kv_bytes_per_token(self.dtype, self.tensor)

    @property
    def table_bytes(self) -> int:
        """Bytes of the sampler's tables on each rank: a count and a bit per sequence and vocabulary entry.

        vLLM allocates them whether penalties are asked for or not (0.32.0, v1/worker/gpu/sample/penalties.py,
        `PenaltiesState`).
        """
        vocabulary = self.architecture.vocab_size
        return 4 * self.max_num_seqs * (vocabulary + math.ceil(vocabulary / 32))

    def slots(self, mean_tokens: float) -> int:
        """Number of sequences of this mean length, prompt included, that decode together."""
        return max(
            1, min(self.max_num_seqs, int(self.kv_cache_bytes / (self.kv_bytes_per_token * mean_tokens)))
        )


@cache
def generation_seconds(call: GenerationCall, engine: Engine, replicas: int, gpu: Gpu, rates: Rates) -> float:
    """Estimate the seconds until the last sample of a call has ended on the slowest engine.

    Results are cached, because layouts that differ only in the trainer ask for the same calls.
    """
    samples = math.ceil(call.samples / replicas)
    groups = math.ceil(call.groups / replicas)
    scale = max(1, math.ceil(samples / LARGEST_SIMULATED))
    # Every engine draws from the same distribution. If any sample runs on to the cap, the slowest
    # engine holds it.
    lengths = list(call.lengths.completions(max(1, samples // scale)))
    longest = max(call.lengths.completions(min(call.samples, 4 * LARGEST_SIMULATED)))
    lengths[lengths.index(max(lengths))] = longest
    prefill_tokens = groups * call.lengths.prompt
    flops_per_token = 2 * total_elements(engine.architecture) / engine.tensor
    prefill = prefill_tokens * flops_per_token / (gpu.flops * rates.gemm_efficiency)
    decode = decode_seconds(
        lengths, call.lengths.prompt, engine, engine.slots(call.lengths.mean_total), gpu, rates
    )
    return prefill + decode * (samples / len(lengths) if scale > 1 else 1)


def decode_seconds(
    lengths: Sequence[int], prompt: float, engine: Engine, slots: int, gpu: Gpu, rates: Rates
) -> float:
    """Estimate the seconds to decode `lengths` tokens per sequence, `slots` sequences at a time,
    first come first served."""
    bandwidth = gpu.memory_rate * rates.memory_efficiency
    compute = 2 * total_elements(engine.architecture) / engine.tensor / (gpu.flops * rates.gemm_efficiency)
    fixed = engine.weight_bytes / bandwidth + rates.decode_step_s
    if engine.tensor > 1:
        fixed += 2 * engine.architecture.num_layers * rates.all_reduce_s
    per_token = engine.kv_bytes_per_token / bandwidth
    waiting = list(reversed(lengths))
    active: list[tuple[int, int]] = []  # (step at which it ends, its length)
    step, context, seconds = 0, 0.0, 0.0
    while waiting or active:
        while waiting and len(active) < slots:
            length = waiting.pop()
            heapq.heappush(active, (step + length, length))
            context += prompt
        end, length = heapq.heappop(active)
        steps, live = end - step, len(active) + 1
        # Keys and values read over these steps: `context` tokens now, and `live` more after each step.
        read = steps * context + live * steps * (steps - 1) / 2
        seconds += steps * max(fixed, live * compute) + read * per_token
        context += live * steps - (prompt + length)
        step = end
    return seconds
