"""Make a run directory in a second: scripted self-play through the real code, and records as the
journal writes them.

Names and texts contain markup on purpose: everything that a corpus or a model writes must come out
as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfemo.config.checks import initialised_architecture
from selfemo.config.layout import layout_of
from selfemo.config.load import as_yaml
from selfemo.config.schema import (
    CorpusConfig,
    FlywheelConfig,
    ModelConfig,
    ParallelConfig,
    RewardConfig,
    RunConfig,
    SelfPlayConfig,
)
from selfemo.corpora.conversation import Corpus
from selfemo.flywheel.flywheel import Flywheel
from selfemo.planning.trainer_bytes import trainer_bytes
from selfemo.records.training_dialogues import training_dialogues
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import GenerationRequest
from selfemo.run.iteration import component_means, episode_records, outcome_counts, role_figures
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.transitions import TransitionPrior
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, conversation

HOSTILE = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'> "
    '{{ 7 * 7 }} </style> &amp; "quoted"'
)
SPEAKER = "<b>Ann</b>"
ITERATIONS = 5
PLAY = SelfPlayConfig(
    seeds_per_iteration=4,
    turns=2,
    recognizer_group_size=4,
    responder_group_size=2,
    max_answer_tokens=20,
    max_utterance_tokens=160,
)
CONFIG = RunConfig(
    iterations=ITERATIONS,
    model=ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
    ),
    parallel=ParallelConfig(tensor=2),
    corpus=CorpusConfig(name="everyday"),
    selfplay=PLAY,
)
TRAIN = [
    conversation(
        str(i),
        f"{SPEAKER}[joy]: {HOSTILE} number {i} starts off so",
        f"Bo[{label}]: number {i} goes on so",
        f"{SPEAKER}[joy]: end of {i}",
    )
    for i, label in enumerate(LABELS * 5)
]
CORPUS = Corpus("toy", LABELS, tuple(TRAIN))
STAGE_FIGURES = {"start": (0.0, 1.0), "sft": (0.5, 0.0), "final": (0.48, 0.02)}
"""(accuracy, format failures) by stage: SFT brings nearly everything, self-play costs a little."""


def make_run(root: Path, finished: bool = True, config: RunConfig = CONFIG) -> Path:
    """Write a run's records to `root`: a finished run's, or those of a live run in the middle of a line."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(as_yaml(replace(config, output_dir="runs/made")))
    events, dialogues = _self_play(root, replace(PLAY, views=config.selfplay.views))
    before = [
        _sync(1),
        _evaluation("start"),
        _phases(0, "setup", "sync", "eval"),
        *map(_sft, range(12)),
        _sync(2),
        _evaluation("sft"),
    ]
    after = [_evaluation("final"), _phases(900, "eval", "save"), _memory(config)] if finished else []
    _append(root / "metrics.jsonl", [*before, *events, *after])
    _append(root / "samples.jsonl", dialogues)
    (root / "training_dialogues.json").write_text(json.dumps(training_dialogues(CORPUS, config)))
    if finished:
        (root / "summary.json").write_text(json.dumps(_summary()))
    else:
        with (root / "metrics.jsonl").open("a") as file:
            file.write('{"event": "iteration", "iter')
    return root


def _self_play(root: Path, play: SelfPlayConfig) -> tuple[list[dict], list[dict]]:
    rewards = Rewards(RewardConfig(), TRAIN, LABELS)
    selfplay = SelfPlay(
        ScriptedGenerator(_speak),
        PromptBuilder(CharEncoder(), LABELS, 3, 200),
        rewards.score,
        TransitionPrior.estimate(TRAIN),
        play,
        5,
    )
    pool, flywheel = (
        OpeningPool(CORPUS, play, 5, 3),
        Flywheel(FlywheelConfig(), CORPUS, rewards, root / "flywheel.sqlite", is_writer=True),
    )
    events: list[dict[str, Any]] = []
    dialogues: list[dict[str, Any]] = []
    for iteration in range(ITERATIONS):
        episodes = selfplay.play(pool.draw(iteration, flywheel.kept_dialogues(iteration)), iteration)
        groups = rewards.score_groups([group for episode in episodes for group in episode.groups])
        flywheel.offer(groups, iteration + 2)
        groups = [replace(g, advantages=tuple(total - g.totals[0] for total in g.totals)) for g in groups]
        samples = sum(len(g.totals) for g in groups)
        events += [
            _sync(iteration + 3),
            {
                "event": "iteration",
                "iteration": iteration,
                "reward": 0.5 + iteration / 10,
                **{f"reward_{name}": value for name, value in component_means(groups).items()},
                **role_figures(groups),
                "samples": samples,
                "samples_trained": samples // 2,
                "tokens": 10 * samples,
                "groups": len(groups),
                "groups_without_ranking": iteration,
                "flywheel": outcome_counts(flywheel.outcomes(iteration)),
                "grad_norm": 1.0,
                "step_applied": True,
                "kl": 0.01 * iteration,
                "entropy": 2.0,
                "clipped_share": 0.0,
                "logprob_gap_max": 3e-6,
                "logprob_gap_mean": 2e-7,
                "logprob_gap_max_bound": 4e-3,
                "logprob_gap_mean_bound": 1e-4,
                "importance_truncated_share": 0.01 * iteration,
                "seconds": {"rollout": 20.0, "reward": 5.0, "train": 60.0, "sync": 5.0},
            },
            _phases(100 + 100 * iteration, "rollout", "reward", "train", "sync"),
        ]
        dialogues += episode_records(iteration, episodes, groups, limit=2)
    flywheel.close()
    return events, dialogues


def _speak(prompt: str, request: GenerationRequest) -> str:
    if prompt.startswith("Write"):
        return f"{HOSTILE} word{request.seed % 1009} word{request.seed % 1013}"
    return "joy" if request.temperature == 0 or request.seed % 3 else "anger"


def _sync(version: int) -> dict[str, Any]:
    return {
        "event": "sync",
        "version": version,
        "seconds": 0.2,
        "path": "direct",
        "received_bytes": 123,
        "probed": version == 1,
    }


def _sft(step: int) -> dict[str, Any]:
    return {"event": "sft", "step": step, "loss": 4.0 / (step + 1), "grad_norm": 1.0, "tokens": 50}


def _evaluation(stage: str) -> dict[str, Any]:
    accuracy, failures = STAGE_FIGURES[stage]
    confusion = [[0] * (len(LABELS) + 1) for _ in LABELS]
    for row, support in enumerate((40, 30, 20, 10)):
        confusion[row][row], confusion[row][-1] = (
            round(support * accuracy),
            support - round(support * accuracy),
        )
    return {
        "event": "eval",
        "stage": stage,
        **dict.fromkeys(("accuracy", "weighted_f1", "macro_f1", "siou", "exact_match"), accuracy),
        "n": 100,
        "format_failure_rate": failures,
        "label_entropy": 1.0,
        "neutral_share": 0.4,
        "per_label_f1": dict.fromkeys(LABELS, accuracy),
        "confusion": confusion,
    }


def _phases(start_s: float, *names: str) -> dict[str, Any]:
    """Make spans of two ranks, 25 s each; rank 1 is a second late."""
    return {
        "event": "phases",
        "ranks": {
            str(rank): [
                [name, start_s + 25 * i + rank, start_s + 25 * (i + 1)] for i, name in enumerate(names)
            ]
            for rank in range(2)
        },
    }


def _memory(config: RunConfig) -> dict[str, Any]:
    architecture, layout = initialised_architecture(config.model), layout_of(config, 1, 2)
    held = {rank: trainer_bytes(architecture, layout, 0, 0, "float32") for rank in range(2)}
    kinds = ("weights", "gradients", "optimizer", "reference")
    return {
        "event": "memory",
        "ranks": {
            str(rank): {kind: getattr(bytes_, kind) for kind in kinds} for rank, bytes_ in held.items()
        },
    }


def _summary() -> dict[str, Any]:
    return {
        "world_size": 2,
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "data_parallel": 1,
        "backend": "gloo",
        "trainer": "megatron-core 0.16.1",
        "engine": "vllm 0.32.0",
        "corpus": "toy",
        "eval": {"majority": {"accuracy": 0.4, "weighted_f1": 0.2, "macro_f1": 0.1, "n": 100}},
        "seconds": {"total": 950.0},
    }


def _append(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
