"""Check the learning rate of self-play's optimizer steps."""

from __future__ import annotations

from dataclasses import replace

from selfemo.config.schema import AlgorithmConfig, RunConfig, TrainConfig
from selfemo.run.policy_update import learning_rate


def test_warm_up_and_decay_count_optimizer_steps_not_iterations() -> None:
    config = replace(
        RunConfig(),
        iterations=3,
        algorithm=AlgorithmConfig(updates_per_rollout=4),
        train=TrainConfig(learning_rate=1.0, warmup_steps=5, final_learning_rate_share=0.4),
    )
    rates = [round(learning_rate(config, step), 6) for step in range(12)]
    assert rates == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
