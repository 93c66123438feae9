"""Compares an iteration with a step of TRL's GRPOTrainer."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from tools.bench_iteration.setting import (
    LEARNING_RATE,
    bench_config,
    build_trainer,
    initial_prompts,
    ratio_figures,
)

TRL_BAR = 2.0
"""Least speed of an iteration, as a multiple of TRL's."""


def bench_trl(options: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """Compare an iteration of the trainer's own loop with a step of GRPOTrainer, in turns.

    Ours is rollout, rewards, SELF-GRPO step and weight sync. Both have the same prompts, G, completion
    cap, loss (GRPO), KL and optimizer rate, in fp32, without gradient checkpointing and with nothing
    logged. TRL's training loop hands over after each of its steps.
    """
    try:
        import datasets
        import trl
    except ImportError as error:
        raise SystemExit(
            f"bench_iteration: {error.name} is not installed: pip install --no-deps -r requirements/bench.txt"
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from selfemo.emotions.answer import parse_answer
    from selfemo.grpo.advantages import loss_config
    from selfemo.selfplay.prompts import recognizer_text

    config = bench_config(options, run_dir, turns=0)
    count = options.warmup + options.rounds
    model_dir, batches, labels = initial_prompts(config, count)
    openings = [opening for batch in batches for opening in batch]
    rows = [
        {
            "prompt": [{"role": "user", "content": recognizer_text(s.turns, labels)}],
            "gold": s.turns[-1].labels,
        }
        for s in openings
    ]
    loss = loss_config(config.algorithm, config.selfplay)
    settings = trl.GRPOConfig(
        output_dir=str(run_dir.with_name("trl-output")),
        max_steps=count,
        per_device_train_batch_size=options.prompts * options.group,
        num_generations=options.group,
        max_completion_length=options.tokens,
        chat_template_kwargs={"enable_thinking": False},
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=config.train.weight_decay,
        max_grad_norm=config.train.clip_grad,
        temperature=config.selfplay.temperature,
        loss_type="grpo",
        beta=loss.kl_beta,
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=config.seed,
    )
    ours: list[float] = []
    theirs: list[float] = []
    lengths: list[float] = []

    def reward(
        completions: list[Any], gold: list[list[str]], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        lengths.append(statistics.mean(map(len, completion_ids)))
        readings = [parse_answer(c[0]["content"], labels) for c in completions]
        return [
            trainer.parts.rewards.score.of_reading(reading, tuple(target))
            for reading, target in zip(readings, gold, strict=True)
        ]

    class InTurns(TrainerCallback):
        """Takes TRL's time, then runs and times an iteration of ours."""

        mark = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # for the first step; later ones are counted from the end of our iteration
            self.mark = self.mark or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended = time.perf_counter()
            theirs.append(ended - self.mark)
            trainer.iterate(len(ours))
            self.mark = time.perf_counter()
            ours.append(self.mark - ended)

    # TRL first: its accelerator would otherwise find our process group and wrap the model for it.
    peer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(model_dir), dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(str(model_dir)),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[InTurns()],
    )
    trainer = build_trainer(config)
    for opening, row in zip(openings, rows, strict=True):
        ids = peer.processing_class.apply_chat_template(
            row["prompt"], add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        if tuple(ids) != trainer.system.prompts.recognize(opening.turns):
            raise RuntimeError(f"opening {opening.index}: the two sides would be given different prompts")
    trainer.state.reference = trainer.system.learner.snapshot()
    trainer.system.learner.begin_stage()
    peer.train()
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    iterations = [record for record in records if record["event"] == "iteration"][options.warmup :]
    phases = iterations[0]["seconds"]
    return {
        "prompts": options.prompts,
        "group": options.group,
        "views": options.views,
        "tokens_cap": options.tokens,
        "rounds": options.rounds,
        "trl": trl.__version__,
        "mean_completion_tokens": {
            "selfemo": statistics.mean(record["tokens"] / record["samples"] for record in iterations),
            "trl": statistics.mean(lengths[options.warmup :]),
        },
        "seconds": {
            "selfemo": statistics.median(ours[options.warmup :]),
            "trl": statistics.median(theirs[options.warmup :]),
        },
        "phases": {
            name: statistics.median(record["seconds"][name] for record in iterations) for name in phases
        },
        **ratio_figures(theirs[options.warmup :], ours[options.warmup :], TRL_BAR),
    }
