"""Takes the optimizer steps of SELF-GRPO on one rollout batch."""

from __future__ import annotations

from itertools import pairwise

from selfemo.config.schema import RunConfig
from selfemo.grpo.advantages import loss_config
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.learner import batch_counts
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
    samples: list[TrainingSample],
) -> list[PolicyStats]:
    """Take the steps of one iteration: policy loss on the samples, SFT loss on supervised examples.

    The KL term refers to the weights at the start of the round.

    Args:
        samples: this iteration's samples of all ranks, the same list on every rank; cut into
            `algorithm.updates_per_rollout` batches.
    """
    learner, updates, loss, settings = (
        system.learner,
        config.algorithm.updates_per_rollout,
        loss_config(config),
        config.train,
    )
    bounds = [len(samples) * i // updates for i in range(updates + 1)]
    counts = [batch_counts(samples[start:end]) for start, end in pairwise(bounds)]
    # A sample of weight 0 adds exactly nothing to loss or gradient, so the model does not read it. The
    # batch's counts still include it.
    batches = [
        [sample for sample in samples[start:end] if sample.weight != 0] for start, end in pairwise(bounds)
    ]
    plans = [learner.plan(batch) for batch in batches]
    reference: list[list] = [[] for _ in plans]
    if loss.kl_beta > 0:
        with learner.weights_of(state.reference):
            reference = [learner.logprobs(plan) for plan in plans]
    # With one update per rollout the policy in training is the one that sampled, so the ratio is exactly
    # 1 and needs no old logprobs.
    old = [learner.logprobs(plan) for plan in plans] if updates > 1 else [[] for _ in plans]
    rate = warmup_linear(
        iteration,
        config.iterations,
        settings.warmup_steps,
        settings.learning_rate,
        settings.final_learning_rate_share,
    )
    since = round_of(iteration, config).start
    steps = []
    for number, (batch, plan, ref, previous, whole) in enumerate(
        zip(batches, plans, reference, old, counts, strict=True)
    ):
        supervised = examples.of_step(iteration * updates + number, since)
        stats = learner.policy_step(batch, plan, loss, rate, ref, previous, whole, supervised)
        state.count_step(f"iteration {iteration}", stats.step, batch)
        if number == 0:  # later updates have moved off the policy that sampled
            state.check_gap(f"iteration {iteration}", stats, batch)
        if batch:
            check_ratio(stats, on_policy=updates == 1)
        steps.append(stats)
    return steps
