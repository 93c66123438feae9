"""Sets up the runs that are measured: one configuration, one trainer, the same prompts for both sides."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfemo.config.schema import RunConfig
    from selfemo.selfplay.records import Opening
    from selfemo.trainer import Trainer

LEARNING_RATE = 1e-5
"""Low, so that random weights do not drift to short answers on one side alone."""


def bench_config(options: argparse.Namespace, run_dir: Path, turns: int) -> RunConfig:
    """Return the default configuration with the sizes asked for."""
    from selfemo.config.load import load_config
    from selfemo.selfplay.views import view_names

    return load_config(
        None,
        [
            f"output_dir={run_dir}",
            f"iterations={options.warmup + options.rounds}",
            "corpus.name=everyday",
            "corpus.history_turns=2",
            f"selfplay.seeds_per_iteration={options.prompts}",
            f"selfplay.turns={turns}",
            f"selfplay.recognizer_group_size={options.group}",
            f"selfplay.views=[{', '.join(view_names()[: options.views])}]",
            f"selfplay.max_answer_tokens={options.tokens if turns == 0 else 12}",
            f"selfplay.max_utterance_tokens={options.tokens}",
            "selfplay.real_seed_share=1.0",
            # every sample is trained on, as in TRL; SELF-GRPO would skip groups that rank nothing
            "algorithm.loss=grpo",
            f"train.learning_rate={LEARNING_RATE}",
            "train.max_tokens_per_microbatch=8192",
        ],
    )


def build_trainer(config: RunConfig) -> Trainer:
    """Build the trainer of a run that has just started, with random weights, and send them to the engine."""
    from selfemo.config.training_corpus import load_run_corpus
    from selfemo.inference.engines import join_world_of_one
    from selfemo.process.stop import StopSignals
    from selfemo.process.terminal import Terminal
    from selfemo.records.directory import RunDirectory
    from selfemo.run.journal import Journal
    from selfemo.run.stoppable import StopRequest
    from selfemo.system import build_system, join_world
    from selfemo.trainer import Trainer

    run = RunDirectory.claim(config)
    terminal = Terminal(True, run.root, 0)
    terminal.open_log()
    join_world_of_one(None)  # over gloo, which needs no port here
    world = join_world(config)
    system = build_system(config, world, run, load_run_corpus(config))
    stop = StopRequest(world.device.torch_device, StopSignals())
    trainer = Trainer(config, system, run, Journal(config, run, terminal, world), stop)
    trainer.sync()
    return trainer


def initial_prompts(config: RunConfig, iterations: int) -> tuple[Path, list[list[Opening]], tuple[str, ...]]:
    """Return the run's initial model, the openings of its first iterations, and the label set."""
    from selfemo.config.training_corpus import load_run_corpus
    from selfemo.records.directory import INITIAL_MODEL_NAME, RunDirectory
    from selfemo.selfplay.openings import OpeningPool
    from selfemo.selfplay.tokenizer_texts import tokenizer_texts
    from selfemo.tokens.init_model import init_model

    corpus = load_run_corpus(config)
    run = RunDirectory.claim(config)
    model_dir = init_model(run.path(INITIAL_MODEL_NAME), config.model, tokenizer_texts(corpus), config.seed)
    pool = OpeningPool(corpus, config.selfplay, config.seed, config.corpus.history_turns)
    return model_dir, [pool.draw(iteration) for iteration in range(iterations)], corpus.labels


def ratio_figures(
    slower: Sequence[float], ours: Sequence[float], bar: float | None = None
) -> dict[str, float | None]:
    """Divide their seconds by ours, round by round; return the median, the extremes and the bar, if any."""
    ratios = [theirs / mine for theirs, mine in zip(slower, ours, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "bar": bar,
    }
