"""Estimate how long the engines take for a batch, by simulating continuous batching under a
memory-bandwidth roofline.

A decode step reads the weights once and the keys and values of every live sequence. Its time
therefore falls as sequences end, but never below reading the weights plus the engine's own overhead
per step: the last few sequences of a batch decode no faster than that. The simulation steps from
one completion to the next and sums the steps between them in closed form.

In lock-step every call waits for the longest sequence of the last one. Otherwise only the episode
that holds it waits, and the others keep the engine busy.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
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
def rollout_seconds(
    calls: tuple[GenerationCall, ...], episodes: int, engine: Engine, replicas: int, gpu: Gpu, rates: Rates
) -> float:
    """Estimate the seconds until the last sample of all calls has ended on the slowest engine.

    Results are cached, because layouts that differ only in the trainer ask for the same calls.

    Args:
        episodes: those that go through the calls at their own pace; 1 is lock-step.
    """
    if episodes == 1:  # the turns of an episode repeat the same calls: each distinct one is simulated once
        return sum(
            count * generation_seconds(call, engine, replicas, gpu, rates)
            for call, count in Counter(calls).items()
        )
    own = math.ceil(episodes / replicas)
    largest = own * max(call.samples for call in calls) / episodes
    simulated = max(1, own // math.ceil(largest / LARGEST_SIMULATED))
    steps = []
    for number, call in enumerate(calls):
        size = math.ceil(call.samples / episodes)
        lengths = _lengths_on_slowest(call, simulated * size)
        random.Random(number).shuffle(lengths)  # an episode that is slow in one step is not so in all
        steps.append([lengths[size * i : size * (i + 1)] for i in range(simulated)])
    samples = sum(call.samples for call in calls)
    prompt = sum(call.samples * call.lengths.prompt for call in calls) / samples
    total = sum(call.samples * call.lengths.mean_total for call in calls) / samples
    decode = decode_seconds(list(zip(*steps, strict=True)), prompt, engine, engine.slots(total), gpu, rates)
    return (
        sum(_prefill_seconds(call, engine, replicas, gpu, rates) for call in calls) + decode * own / simulated
    )


@cache
def generation_seconds(call: GenerationCall, engine: Engine, replicas: int, gpu: Gpu, rates: Rates) -> float:
    """Estimate the seconds until the last sample of a call has ended on the slowest engine."""
    samples = math.ceil(call.samples / replicas)
    scale = max(1, math.ceil(samples / LARGEST_SIMULATED))
    lengths = _lengths_on_slowest(call, max(1, samples // scale))
    slots = engine.slots(call.lengths.mean_total)
    decode = decode_seconds([[lengths]], call.lengths.prompt, engine, slots, gpu, rates)
    prefill = _prefill_seconds(call, engine, replicas, gpu, rates)
    return prefill + decode * (samples / len(lengths) if scale > 1 else 1)


def decode_seconds(
    episodes: Sequence[Sequence[Sequence[int]]],
    prompt: float,
    engine: Engine,
    slots: int,
    gpu: Gpu,
    rates: Rates,
) -> float:
    """Estimate the seconds to decode sequences, `slots` of them at a time, first come first served.

    Args:
        episodes: tokens of each sequence, by episode and step. A step comes when the one before has ended.
    """
    bandwidth = gpu.memory_rate * rates.memory_efficiency
    compute = 2 * total_elements(engine.architecture) / engine.tensor / (gpu.flops * rates.gemm_efficiency)
    fixed = engine.weight_bytes / bandwidth + rates.decode_step_s
    if engine.tensor > 1:
        fixed += 2 * engine.architecture.num_layers * rates.all_reduce_s
    per_token = engine.kv_bytes_per_token / bandwidth
    coming = [iter(steps) for steps in episodes]
    left = [0] * len(episodes)
    waiting: deque[tuple[int, int]] = deque()  # (length, its episode)

    def begin_step(episode: int) -> None:
        lengths = next(coming[episode], ())
        left[episode] = len(lengths)
        waiting.extend((length, episode) for length in lengths)

    for episode in range(len(episodes)):
        begin_step(episode)
    active: list[tuple[int, int, int]] = []  # (engine step at which it ends, its length, its episode)
    step, context, seconds = 0, 0.0, 0.0
    while waiting or active:
        while waiting and len(active) < slots:
            length, episode = waiting.popleft()
            heapq.heappush(active, (step + length, length, episode))
            context += prompt
        end, length, episode = heapq.heappop(active)
        steps, live = end - step, len(active) + 1
        # Keys and values read over these steps: `context` tokens now, and `live` more after each step.
        read = steps * context + live * steps * (steps - 1) / 2
        seconds += steps * max(fixed, live * compute) + read * per_token
        context += live * steps - (prompt + length)
        step = end
        left[episode] -= 1
        if not left[episode]:
            begin_step(episode)
    return seconds


def _lengths_on_slowest(call: GenerationCall, samples: int) -> list[int]:
    """Draw the lengths of an engine's samples.

    Every engine draws from the same distribution. If any sample runs on to the cap, the slowest engine
    holds it.
    """
    lengths = list(call.lengths.completions(samples))
    longest = max(call.lengths.completions(min(call.samples, 4 * LARGEST_SIMULATED)))
    lengths[lengths.index(max(lengths))] = longest
    return lengths


def _prefill_seconds(call: GenerationCall, engine: Engine, replicas: int, gpu: Gpu, rates: Rates) -> float:
    tokens = math.ceil(call.groups / replicas) * call.lengths.prompt
    flops_per_token = 2 * total_elements(engine.architecture) / engine.tensor
    return tokens * flops_per_token / (gpu.flops * rates.gemm_efficiency)
