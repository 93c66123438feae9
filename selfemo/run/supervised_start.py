"""Runs the first stage: teaches both roles' formats from the training split, step by step."""

from __future__ import annotations

from functools import partial

from selfemo.config.schema import RunConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.example_dealer import deal_examples
from selfemo.megatron.optimizer import warmup_cosine
from selfemo.run.journal import Journal
from selfemo.run.state import RunState
from selfemo.run.supervised_examples import labelled_examples
from selfemo.selfplay.sft import SftExamples
from selfemo.system import System


def supervised_start(config: RunConfig, system: System, state: RunState, journal: Journal) -> None:
    """Take the supervised steps that are left. Collective.

    Raises:
        UserError: no turn to teach from, or too many steps in a row were skipped.
        Stopped: a signal asked for it, between two steps.
    """
    sft, examples, world = config.sft, labelled_examples(config, system), system.world
    system.engine.sleep()  # it is awake: it has answered the evaluation, or proved a resumed run's weights
    with journal.stage("SFT", sft.steps) as bar:
        bar.skip(state.progress.step)
        for step in range(state.progress.step, sft.steps):
            rate = warmup_cosine(
                step, sft.steps, sft.warmup_steps, sft.learning_rate, sft.final_learning_rate_share
            )
            make = partial(_sample, examples, step * sft.batch_size)
            weights = [1.0] * sft.batch_size
            with journal.phase("sft"):
                batch = deal_examples(make, weights, config.train, world.layout, world.device.torch_device)
                stats = system.learner.sft_step(batch, rate)
            bar.advance(journal.sft_step(step, stats))
            state.count_step(f"SFT step {step}", stats, batch)
            state.reached("sft", step + 1)


def _sample(examples: SftExamples, first: int, index: int) -> TrainingSample:
    example = examples.example(first + index)
    return TrainingSample(example.prompt_ids, example.completion_ids)
