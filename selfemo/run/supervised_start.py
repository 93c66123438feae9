"""Runs the first stage: teaches both roles' formats from the training split, step by step."""

from __future__ import annotations

from selfemo.config.schema import RunConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.optimizer import warmup_cosine
from selfemo.run.journal import Journal
from selfemo.run.state import RunState
from selfemo.run.supervised_examples import labelled_examples
from selfemo.system import System


def supervised_start(config: RunConfig, system: System, state: RunState, journal: Journal) -> None:
    """Take the supervised steps that are left. Collective.

    Raises:
        UserError: no turn to teach from, or too many steps in a row were skipped.
        Stopped: a signal asked for it, between two steps.
    """
    sft, examples = config.sft, labelled_examples(config, system)
    system.engine.sleep()  # it is awake: it has answered the evaluation, or proved a resumed run's weights
    with journal.stage("SFT", sft.steps) as bar:
        bar.skip(state.progress.step)
        for step in range(state.progress.step, sft.steps):
            batch = [
                TrainingSample(e.prompt_ids, e.completion_ids) for e in examples.batch(step, sft.batch_size)
            ]
            with journal.phase("sft"):
                stats = system.learner.sft_step(
                    batch, warmup_cosine(step, sft.steps, sft.warmup_steps, sft.learning_rate)
                )
            bar.advance(journal.sft_step(step, stats))
            state.count_step(f"SFT step {step}", stats, batch)
            state.reached("sft", step + 1)
