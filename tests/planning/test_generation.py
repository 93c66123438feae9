"""Compare the decode simulation with stepping token by token, and test the properties of a batch's time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.models.architecture import architecture_by_name
from selfemo.planning.generation import Engine, decode_seconds, generation_seconds, rollout_seconds
from selfemo.planning.hardware import GIB, GPUS
from selfemo.planning.rates import Rates
from selfemo.planning.workload import GenerationCall, Lengths

QWEN = architecture_by_name("qwen3-8b")
H100 = GPUS["h100-80g"]
RATES = Rates(decode_step_s=0.004)
ENGINE = Engine(QWEN, 1, "bfloat16", 20 * GIB, max_num_seqs=256)
PAIR = Engine(QWEN, 2, "bfloat16", 20 * GIB, max_num_seqs=256)


def _token_by_token(lengths: list[int], prompt: float, engine: Engine, slots: int) -> float:
    bandwidth = H100.memory_rate * RATES.memory_efficiency
    compute = 2 * 8_190_735_360 / engine.tensor / (H100.flops * RATES.gemm_efficiency)
    fixed = (
        engine.weight_bytes / bandwidth
        + RATES.decode_step_s
        + (72 * RATES.all_reduce_s if engine.tensor > 1 else 0)
    )
    waiting, active, seconds = list(lengths), [], 0.0
    while waiting or active:
        while waiting and len(active) < slots:
            active.append([prompt, waiting.pop(0)])
        seconds += (
            max(fixed, len(active) * compute)
            + sum(context for context, _ in active) * engine.kv_bytes_per_token / bandwidth
        )
        active = [[context + 1, left - 1] for context, left in active if left > 1]
    return seconds


@pytest.mark.parametrize("engine", [ENGINE, PAIR], ids=["tp1", "tp2"])
@pytest.mark.parametrize(
    ("lengths", "slots"),
    [([5, 3, 9, 9, 1], 8), ([5, 3, 9, 9, 1], 2), ([7] * 6, 3), ([40, 1, 1, 1, 1, 1], 2), ([300, 20, 100], 1)],
)
def test_closed_form_equals_stepping_token_by_token(engine: Engine, lengths: list[int], slots: int) -> None:
    expected = _token_by_token(lengths, 50.0, engine, slots)
    assert decode_seconds([[lengths]], 50.0, engine, slots, H100, RATES) == pytest.approx(expected, rel=1e-9)


def test_one_long_completion_costs_its_whole_tail() -> None:
    batch = [100] * 64
    short = decode_seconds([[batch]], 100.0, ENGINE, 256, H100, RATES)
    long = decode_seconds([[[*batch[1:], 2000]]], 100.0, ENGINE, 256, H100, RATES)
    assert long > 10 * short  # 2% more tokens


def test_the_kv_cache_limits_how_many_decode_together() -> None:
    assert ENGINE.slots(1000) == int(20 * GIB / (2 * 36 * 1024 * 2 * 1000))
    assert ENGINE.slots(1) == 256  # max_num_seqs
    assert PAIR.slots(10_000) == int(20 * GIB / (36 * 1024 * 2 * 10_000))


def test_key_value_heads_are_shared_once_ranks_outnumber_them() -> None:
    per_token = [Engine(QWEN, size, "bfloat16", GIB, 1).kv_bytes_per_token for size in (1, 8, 16)]
    assert per_token[0] == 8 * per_token[1] == 8 * per_token[2]


def test_a_call_takes_longer_with_more_samples_and_less_with_more_engines() -> None:
    def seconds(samples: int, replicas: int) -> float:
        return generation_seconds(
            GenerationCall(samples, samples // 8, Lengths(120, 200, 1024)), ENGINE, replicas, H100, RATES
        )

    assert seconds(256, 8) < seconds(2048, 8) < seconds(32_768, 8)
    assert seconds(32_768, 16) < seconds(32_768, 8)
    # Time is linear far beyond the slots.
    assert seconds(65_536, 8) == pytest.approx(2 * seconds(32_768, 8), rel=0.1)


def test_without_lock_step_an_episode_waits_for_its_own_step_alone() -> None:
    def seconds(*episodes: list[list[int]]) -> float:
        return decode_seconds(episodes, 0.0, replace(ENGINE, kv_cache_bytes=0), 8, H100, RATES)

    one_token = seconds([[1]])
    assert seconds([[5, 2], [4]]) == pytest.approx(9 * one_token, rel=1e-2)
    in_lock_step = seconds([[9, 2], [1, 8]])
    assert in_lock_step == pytest.approx(17 * one_token, rel=1e-2)
    assert seconds([[9], [1]], [[2], [8]]) == pytest.approx(10 * one_token, rel=1e-2)


def test_a_plan_without_lock_step_is_shorter_the_more_lengths_vary() -> None:
    def share(mean: float, cap: int) -> float:
        calls = (GenerationCall(512, 64, Lengths(120, mean, cap)),) * 6
        taken = [rollout_seconds(calls, episodes, ENGINE, 2, H100, RATES) for episodes in (64, 1)]
        return taken[0] / taken[1]

    assert share(100, 101) == pytest.approx(1.0, rel=0.05)
    assert share(100, 2048) < 0.8
