"""Test that samples of weight 0 may be left out: with the whole batch's counts the step is the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfemo.config.schema import ParallelConfig
from selfemo.kernels import LossConfig
from selfemo.megatron.batch import batch_counts
from tests.helpers.parity import learner, samples
from tests.helpers.tiny_model import save_tiny

TINY_WEIGHT = 1e-30
"""Seen by the model, and far below rounding in every sum."""


def _step(hf_dir: str, zero_weight: float | None, count_all: bool) -> tuple[float, float, list[torch.Tensor]]:
    """Take one step; `zero_weight` replaces the weight 0 of a group, None leaves that group out."""
    with learner(hf_dir, ParallelConfig()) as model:
        whole = samples(model.architecture.vocab_size)
        batch = [
            s if s.weight else replace(s, weight=zero_weight)
            for s in whole
            if s.weight or zero_weight is not None
        ]
        counts = batch_counts(whole if count_all else batch)
        config = LossConfig.preset("self_grpo", kl_beta=0.0, entropy_weight=0.01)
        stats = model.policy_step(batch, model.plan(batch), config, 1e-2, counts=counts)
        return stats.step.loss, stats.step.grad_norm, model.snapshot()


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("zero-weight") / "model", "qwen3", True, layers=2))


def test_leaving_samples_of_weight_zero_out_changes_nothing(distributed, hf_dir):
    loss, norm, weights = distributed(1, _step, hf_dir, None, True, timeout_s=240)[0]
    all_loss, all_norm, all_weights = distributed(1, _step, hf_dir, TINY_WEIGHT, True, timeout_s=240)[0]
    assert loss == pytest.approx(all_loss, abs=1e-6)
    assert norm == pytest.approx(all_norm, rel=1e-6)
    for ours, theirs in zip(weights, all_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_without_the_batchs_counts_it_would_be_another_loss(distributed, hf_dir):
    """Show that the test above depends on the counts."""
    loss, _, _ = distributed(1, _step, hf_dir, None, False, timeout_s=240)[0]
    all_loss, _, _ = distributed(1, _step, hf_dir, TINY_WEIGHT, True, timeout_s=240)[0]
    assert loss != pytest.approx(all_loss, abs=1e-4)


def _empty_step(hf_dir: str) -> tuple[float, float, bool]:
    with learner(hf_dir, ParallelConfig()) as model:
        before = model.snapshot()
        counts = batch_counts(samples(model.architecture.vocab_size))
        stats = model.policy_step(
            [], model.plan([]), LossConfig.preset("self_grpo", kl_beta=0.0), 0.0, counts=counts
        )
        return (
            stats.step.loss,
            stats.step.grad_norm,
            all(a.equal(b) for a, b in zip(before, model.snapshot(), strict=True)),
        )


def test_a_batch_without_any_ranking_is_a_step_of_nothing(distributed, hf_dir):
    assert distributed(1, _empty_step, hf_dir, timeout_s=240)[0] == (0.0, 0.0, True)
