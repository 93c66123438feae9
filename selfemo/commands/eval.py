"""Evaluate one model, or two on the same turns, on a split of a corpus (`selfemo eval`).

Generating needs engines, which this room must not know: the code that assembles the command line
passes in a way to open them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfemo.common.errors import UserError
from selfemo.common.files import check_target
from selfemo.evaluation.options import EvaluationOptions, Scoring, Split
from selfemo.inference.finished_model import Engines
from selfemo.selfplay.views import parse_views

if TYPE_CHECKING:
    from selfemo.evaluation.results import Evaluation

REDIRECTED_WIDTH = 110
"""Width in columns of a report that goes to a file or pipe, which has no width of its own."""


def build_command(open_engines: Callable[[], Engines]) -> Callable[..., None]:
    """Build the command. It calls `open_engines` once, after checking all input."""

    def evaluate(
        model: Annotated[Path, typer.Option(help="Hugging Face directory, such as runs/demo/model.")],
        overrides: Annotated[
            list[str] | None, typer.Argument(help="Settings to change, such as corpus.history_turns=2.")
        ] = None,
        corpus: Annotated[
            str, typer.Option(help="A corpus's name or path; by default the one of the model's run.")
        ] = "",
        split: Annotated[Split, typer.Option(help="Split to evaluate.")] = "dev",
        json_file: Annotated[
            Path | None, typer.Option("--json", help="Write every figure and answer here.")
        ] = None,
        against: Annotated[
            Path | None, typer.Option(help="A second model: paired intervals of the difference.")
        ] = None,
        scoring: Annotated[
            Scoring, typer.Option(help="Greedy generation, or the likelihood of each label.")
        ] = "generate",
        votes: Annotated[
            int, typer.Option(min=0, help="Sampled answers per turn for calibration (generate); 0 for none.")
        ] = 8,
        views: Annotated[
            str,
            typer.Option(help="Also vote over views of each turn: how many, or their names with commas."),
        ] = "",
        limit: Annotated[int, typer.Option(min=0, help="Only the first N turns; 0 for all.")] = 0,
        expression: Annotated[
            bool, typer.Option("--expression", help="Also let the model answer at given emotions.")
        ] = False,
        recognizer: Annotated[
            Path | None, typer.Option(help="With --expression: the frozen model that reads the answers.")
        ] = None,
        defaults: Annotated[
            bool, typer.Option("--defaults", help="Ignore the settings of the run around a model.")
        ] = False,
        seed: Annotated[int, typer.Option(min=0, help="Of sampling and of the bootstrap.")] = 1,
    ) -> None:
        """Evaluate a finished model: recognition with intervals, calibration, expression, signs of
        collapse."""
        if expression != (recognizer is not None):
            raise UserError(
                "--expression and --recognizer DIR go together: the frozen model that reads the replies, "
                "such as the SFT model"
            )
        options = EvaluationOptions(
            model,
            against,
            recognizer,
            tuple(overrides or ()),
            corpus,
            split,
            limit,
            scoring,
            votes,
            seed,
            parse_views(views, "--views"),
            defaults,
        )
        from selfemo.evaluation.results import as_json, write_json
        from selfemo.evaluation.run import run_evaluation
        from selfemo.evaluation.tables import render

        if json_file is not None:
            check_target(json_file, "--json")
        result = run_evaluation(options, open_engines, lambda line: typer.echo(line, err=True))
        if json_file is not None:
            write_json(json_file, as_json(result))
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=REDIRECTED_WIDTH)
        for part in render(result):
            console.print(part)
        if json_file is not None:
            console.print(f"results: {json_file}", markup=False, soft_wrap=True)
        if (card := write_vote_into_card(options, result)) is not None:
            console.print(f"model card: {card}", markup=False, soft_wrap=True)

    return evaluate


def write_vote_into_card(options: EvaluationOptions, result: Evaluation) -> str | None:
    """Write into the model's card what voting over views brought; returns its path, or why it is as it was.

    Only a vote that the run's own evaluation can stand beside is written: the same split of the run's corpus,
    whole, under the run's settings. None if this is no such vote, or the model has no card.
    """
    from selfemo.report.vote_card import CARD_NAME, record_vote

    report = result.models[0]
    is_the_runs_own = options.split == report.model.config.evaluation.split and not (
        options.corpus or options.limit or options.overrides or options.defaults
    )
    if report.voting is None or not is_the_runs_own:
        return None
    turns = f"{result.corpus} {result.split}, {len(result.task.turns)} turns, scoring: {options.scoring}"
    try:
        written = record_vote(options.model, turns, report.intervals, report.voting)
    except OSError as error:
        return f"{options.model / CARD_NAME} cannot be written ({error.strerror}) and stays as it was"
    return str(options.model / CARD_NAME) if written else None
