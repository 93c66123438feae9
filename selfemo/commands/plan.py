"""Print the memory, traffic and time of a run before any GPU is allocated (`selfemo plan`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selfemo.common.errors import UserError
from selfemo.config.checks import planned_architecture, run_violations, violations
from selfemo.config.dtype import ON_GPU, with_dtypes
from selfemo.config.layout import layout_of
from selfemo.config.load import read_config
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.registry import CorpusAbsent
from selfemo.planning.hardware import gpu_by_name
from selfemo.planning.plan import best_layouts, make_plan
from selfemo.planning.render import as_json, print_accuracy, print_plan
from selfemo.planning.sync import distinct_pair_bytes
from selfemo.planning.workload import workload_of
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.views import unknown_views

MAX_GPUS = 16_384
"""Largest world that is planned for. The search for layouts and the table of rank pairs grow with
the world: beyond this the command would not answer in seconds."""


def plan(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides such as parallel.tensor=4.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of the run.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs in each.")] = 8,
    gpu: Annotated[
        str, typer.Option(help="a100-40g, a100-80g, h100-80g, h200-141g or b200-180g.")
    ] = "h100-80g",
    model: Annotated[
        str, typer.Option(help="A published model by name (qwen3-8b), instead of the configuration's.")
    ] = "",
    prompt_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean prompt length, where measured.")
    ] = None,
    answer_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean recognizer answer, where measured.")
    ] = None,
    utterance_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean responder utterance, where measured.")
    ] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Print published step times beside the planner's, and stop.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Memory per rank and phase, sync bytes, step time, checkpoint size, and the best layouts.
    Needs no GPU."""
    if accuracy:
        print_accuracy(Console())
        return
    # The name is set as model.path, so that the configuration is not checked against the model it would
    # initialise.
    settings = read_config(config, [*(overrides or []), *([f"model.path={model}"] if model else [])])
    settings = with_dtypes(settings, ON_GPU)
    _refuse_beyond_bounds(settings, nodes * gpus_per_node, prompt_tokens, answer_tokens, utterance_tokens)
    hardware = gpu_by_name(gpu)
    architecture = planned_architecture(settings.model)
    layout = layout_of(settings, nodes, gpus_per_node)
    problems = [
        *violations(settings),
        *unknown_views(settings.selfplay, settings.sft),
        *run_violations(settings, layout, architecture),
    ]
    if problems:
        raise UserError(f"{config or 'configuration'}: " + "; ".join(problems))
    workload = workload_of(
        settings, prompt_tokens, answer_tokens, utterance_tokens, _turns_for_teacher(settings)
    )
    planned = make_plan(settings, architecture, layout, workload, hardware)
    suggestions = best_layouts(settings, architecture, workload, nodes, gpus_per_node, hardware)
    pairs = distinct_pair_bytes(architecture, layout, settings.rollout.dtype)
    if json_:
        typer.echo(json.dumps(as_json(planned, pairs, workload, suggestions), indent=2))
    else:
        title = settings.model.path or "initialised model"
        print_plan(planned, pairs, workload, suggestions, title, Console())


def _turns_for_teacher(settings: RunConfig) -> int | None:
    """Count the corpus's turns that a teacher reads; None if nobody asks, or the corpus is not here.

    Raises:
        UserError: the corpus is malformed, or has no turn for a teacher: a launch would refuse it too.
    """
    play = settings.selfplay
    if play.teacher == "policy" or play.teacher_turns:
        return None
    try:
        corpus = load_run_corpus(settings)
    except CorpusAbsent:
        return None
    pool = OpeningPool(corpus, play, settings.seed, settings.corpus.history_turns)
    return len(pool.unlabelled(range(1), 0))


def _refuse_beyond_bounds(
    settings: RunConfig,
    gpus: int,
    prompt_tokens: float | None,
    answer_tokens: float | None,
    utterance_tokens: float | None,
) -> None:
    """Raise UserError if the world is larger than MAX_GPUS, or a measured mean is above its maximum."""
    if gpus > MAX_GPUS:
        raise UserError(
            f"--nodes x --gpus-per-node is {gpus:,} GPUs; expected at most {MAX_GPUS:,}: plan for fewer"
        )
    play = settings.selfplay
    for option, value, most, limit in (
        ("--prompt-tokens", prompt_tokens, settings.model.max_length, "model.max_length"),
        (
            "--answer-tokens",
            answer_tokens,
            play.max_recognizer_tokens,
            "the caps of selfplay on the recognizer",
        ),
        ("--utterance-tokens", utterance_tokens, play.max_utterance_tokens, "selfplay.max_utterance_tokens"),
    ):
        if value is not None and value > most:
            raise UserError(
                f"{option}={value:g} is above {limit}, {most}: a mean cannot exceed it; "
                "lower it or raise the limit"
            )
