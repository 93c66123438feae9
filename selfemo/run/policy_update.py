"""Takes the optimizer steps of SELF-GRPO on one rollout batch."""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.config.schema import RunConfig
from selfemo.grpo.advantages import loss_config
from selfemo.megatron.batch import DealtBatch
from selfemo.megatron.optimizer import warmup_linear
from selfemo.megatron.step_stats import PolicyStats
from selfemo.run.guards import check_ratio
from selfemo.run.rounds import round_of
from selfemo.run.state import RunState
from selfemo.run.supervised_examples import StepExamples
from selfemo.system import System


def policy_update(
    config: RunConfig,
    system: System,
    state: RunState,
    examples: StepExamples,
    iteration: int,
    batches: Sequence[DealtBatch],
) -> list[PolicyStats]:
    """Take the steps of one iteration: policy loss on the samples, SFT loss on supervised examples.

    The KL term refers to the weights at the start of the round.

    Args:
        batches: this iteration's samples, one batch per step.
    """
    learner, updates = system.learner, len(batches)
    loss = loss_config(config.algorithm, config.selfplay)
    plans = [learner.plan(batch) for batch in batches]
    reference: list[list] = [[] for _ in plans]
    if loss.kl_beta > 0:
        with learner.weights_of(state.reference):
            reference = [learner.logprobs(plan) for plan in plans]
    # With one update per rollout the policy in training is the one that sampled, so the ratio is exactly
    # 1 and needs no old logprobs.
    old = [learner.logprobs(plan) for plan in plans] if updates > 1 else [[] for _ in plans]
    since = round_of(iteration, config).start
    steps = []
    for number, (batch, plan, ref, previous) in enumerate(zip(batches, plans, reference, old, strict=True)):
        step = iteration * updates + number
        supervised = examples.of_step(step, since)
        rate = learning_rate(config, step)
        stats = learner.policy_step(batch, plan, loss, rate, ref, previous, supervised=supervised)
        state.count_step(f"iteration {iteration}", stats.step, batch)
        if number == 0:  # later updates have moved off the policy that sampled
            state.check_gap(f"iteration {iteration}", stats, batch)
        if batch.trained_samples:
            check_ratio(stats, on_policy=updates == 1)
        steps.append(stats)
    return steps


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the rate of an optimizer step of self-play, from 0: warm-up, then a straight line to the end."""
    train, steps = config.train, config.iterations * config.algorithm.updates_per_rollout
    return warmup_linear(
        step, steps, train.warmup_steps, train.learning_rate, train.final_learning_rate_share
    )
