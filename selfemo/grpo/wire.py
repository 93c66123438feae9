"""Writes training samples to one array of 32-bit integers and reads them back, to the bit.

Samples that share a prompt hold it once. Arrays are what collectives send, and a float is no shorter as text.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from selfemo.grpo.samples import TrainingSample


def encode(units: Sequence[Sequence[TrainingSample]]) -> array[int]:
    """Write units, each of samples with the same prompt and episode.

    The number of integers, the integers (episode, prompt, completions, each after its length), then the
    floats: advantage, weight and rollout logprobs of each sample.
    """
    numbers, floats = array("i"), array("d")
    for unit in units:
        first = unit[0]
        numbers.extend((first.episode, len(first.prompt_ids), *first.prompt_ids))
        for sample in unit:
            numbers.extend((len(sample.completion_ids), *sample.completion_ids))
            floats.extend((sample.advantage, sample.weight, *sample.rollout_logprobs))
    written = array("i", [len(numbers)])
    written += numbers
    written.frombytes(floats.tobytes())
    return written


def decode(written: array[int], sizes: Sequence[int]) -> list[list[TrainingSample]]:
    """Read what `encode` wrote.

    Args:
        sizes: number of samples of each unit.
    """
    end = 1 + written[0]
    floats = array("d", written[end:].tobytes())
    place, spent = 1, 0

    def take(count: int) -> tuple[int, ...]:
        nonlocal place
        place += count
        return tuple(written[place - count : place])

    units = []
    for size in sizes:
        episode, length = take(2)
        prompt_ids = take(length)
        unit = []
        for _ in range(size):
            completion_ids = take(take(1)[0])
            after = spent + 2 + len(completion_ids)
            advantage, weight, *logprobs = floats[spent:after]
            unit.append(
                TrainingSample(prompt_ids, completion_ids, tuple(logprobs), advantage, weight, episode)
            )
            spent = after
        units.append(unit)
    return units
