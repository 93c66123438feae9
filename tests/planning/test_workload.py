"""Test that length distributions keep their mean and cap, and that planned calls are those of self-play."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.config.layout import Layout
from selfemo.config.schema import AlgorithmConfig, RunConfig, SelfPlayConfig, TrainConfig
from selfemo.planning.steptime import passes
from selfemo.planning.workload import Lengths, workload_of
from tests.selfplay.test_episode import OPENING, play


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 600), st.floats(1, 900), st.integers(900, 4096))
def test_lengths_keep_mean_and_cap(count: int, mean: float, cap: int) -> None:
    lengths = Lengths(10, mean, cap).completions(count)
    assert len(lengths) == count
    assert max(lengths) <= cap
    assert min(lengths) >= 1
    run_on = round(count * 0.01)
    # Run-on samples alone may exceed a small mean.
    reachable = max(mean, (run_on * cap + (count - run_on)) / count)
    assert statistics.fmean(lengths) == pytest.approx(reachable, rel=0.02, abs=0.6)


def test_one_in_a_hundred_runs_on_to_the_cap() -> None:
    assert Lengths(10, 200, 4096).completions(300).count(4096) == 3


def test_padding_is_that_of_random_batches() -> None:
    lengths = Lengths(100, 300, 2048)
    drawn = lengths.completions(512)
    generator = random.Random(5)
    longest = statistics.fmean(max(generator.choices(drawn, k=4)) for _ in range(40_000))
    assert lengths.padding(4) == pytest.approx((100 + longest) / 400, rel=0.01)
    assert lengths.padding(1) == 1


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_calls_are_those_that_self_play_makes(turns: int) -> None:
    play_config = SelfPlayConfig(
        seeds_per_iteration=3,
        turns=turns,
        recognizer_group_size=4,
        responder_group_size=2,
        max_answer_tokens=20,
        max_utterance_tokens=60,
    )
    episodes, generator = play([OPENING] * 3, play_config)
    workload = workload_of(RunConfig(selfplay=play_config))
    # No reply fails a gate in this script.
    assert [call.samples for call in workload.calls] == [len(call) for call in generator.calls]
    assert [call.lengths.max_completion for call in workload.calls] == [
        call[0].max_tokens for call in generator.calls
    ]
    assert workload.train_samples == sum(
        len(group.samples) for episode in episodes for group in episode.groups
    )


def test_updates_and_references_cost_passes() -> None:
    def counts(**algorithm: object) -> tuple[int, int]:
        workload = workload_of(RunConfig(algorithm=AlgorithmConfig(**algorithm)))
        return workload.optimizer_steps, workload.logprob_passes

    assert counts(kl_beta=0.0) == (1, 0)
    assert counts(kl_beta=0.1) == (1, 1)
    assert counts(kl_beta=0.1, updates_per_rollout=4) == (4, 2)


def test_samples_without_a_ranking_are_not_read() -> None:
    whole = workload_of(RunConfig())
    assert whole.trained_share == 1.0
    half, none = (replace(whole, trained_share=share) for share in (0.5, 0.0))
    (all_read, _), (half_read, logprobs) = (passes(w, Layout()) for w in (whole, half))
    assert half_read.microbatches * half_read.tokens == pytest.approx(
        all_read.microbatches * all_read.tokens / 2
    )
    assert logprobs == half_read
    assert half.generated_tokens == whole.generated_tokens
    assert passes(none, Layout())[0].tokens == 0


def test_packed_micro_batches_hold_the_batch_and_respect_the_cap() -> None:
    workload = workload_of(RunConfig(train=TrainConfig(max_tokens_per_microbatch=5000)))
    for layout in (Layout(1, 4), Layout(1, 4, pipeline=2, virtual_pipeline=2)):
        train, _ = passes(workload, layout)
        assert train.microbatches * train.tokens * layout.data == pytest.approx(workload.train_tokens)
        assert train.tokens <= 5000
        assert train.microbatches % layout.pipeline == 0 or layout.virtual_pipeline == 1
