"""Trains and compares the variants of a study.

Usage: python -m tools.study STUDY.yaml --output DIR [--at-once 2] [--seed 1]
           [--estimate | --ask-test | --test [--again]]

The same command resumes training. Dev is evaluated every time; --test evaluates the test split too: once,
when nothing will be changed any more. Where models will not be kept until then, --ask-test collects their
answers about it, of which no figure is made, and tools/study/records.py carries the study to another machine.
Writes DIR/tables (CSV), and from these DIR/report.md and its figures, as `python -m tools.study.page` does
again without any model; every model's answers as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.inference.engines import StandaloneEngines
from selfemo.inference.finished_model import Engines
from tools.study import once
from tools.study.answers import Questions, SplitAnswers
from tools.study.asking import ask_all
from tools.study.continued import check_continued
from tools.study.estimate import asking_left, render_left, training_left
from tools.study.page import PAGE, write_page
from tools.study.plan import only_seeds, read_plan
from tools.study.results import tables_of
from tools.study.runs import StudyRun, answers_file, continuations, starts, train_all, voters
from tools.study.schema import StudyPlan
from tools.study.tables import read_tables, write_tables


def study(
    study_file: Annotated[Path, typer.Argument(help="Study file, such as examples/configs/study_cpu.yaml.")],
    output: Annotated[Path, typer.Option(help="Directory for runs and results.")],
    at_once: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate the test split too, once, at the end.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="With --test: evaluate it once more; the page says so.")
    ] = False,
    ask_test: Annotated[
        bool,
        typer.Option("--ask-test", help="Ask about the test split too, and leave the answers unread."),
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print the CPU minutes that are left, and stop.")
    ] = False,
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this seed of the study; may be repeated.")
    ] = None,
) -> None:
    """Train every variant and seed, evaluate them, and write the comparison."""

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    plan = read_plan(study_file)
    if seed:
        plan = only_seeds(plan, seed)
    if again and not test:
        raise UserError("--again evaluates the test split once more: it goes with --test")
    first, others = starts(plan, study_file, output), continuations(plan, study_file, output)
    runs = [*first, *others, *voters(plan, output)]
    if estimate:
        left = [*training_left(plan, [*first, *others]), asking_left(plan, runs, output, "dev")]
        if test or ask_test:
            left.append(asking_left(plan, runs, output, "test"))
        typer.echo(render_left(left))
        return
    commit = once.current_commit()
    if test:
        once.check_test(output, again, commit)
    output.mkdir(parents=True, exist_ok=True)
    train_all(first, output / "tensors", plan.processes, at_once, tell)
    check_continued(others)
    train_all(others, output / "tensors", plan.processes, at_once, tell)
    engines = StandaloneEngines()
    answers = {"dev": ask_split(plan, runs, "dev", output, engines, tell)}
    if ask_test:
        ask_split(plan, runs, "test", output, engines, tell)
    if test:
        once.begin_test(output, commit)
        answers["test"] = ask_split(plan, runs, "test", output, engines, tell)
        once.end_test(output)
    elif once.is_done(output):
        if unasked := asking_left(plan, runs, output, "test").left:
            tell(f"the test split was evaluated, but not {unasked} of these {len(runs)} models: left out")
        else:
            answers["test"] = ask_split(plan, runs, "test", output, engines, tell)  # asks nothing
    tables = tables_of(plan, [*first, *others], answers, once.told(output))
    write_tables(output / "tables", tables)
    typer.echo(write_page(read_tables(output / "tables"), output))
    typer.echo(f"results: {output / PAGE}")


def ask_split(
    plan: StudyPlan,
    runs: Sequence[StudyRun],
    split: str,
    output: Path,
    engines: Engines,
    tell: Callable[[str], None],
) -> dict[float | None, SplitAnswers]:
    """Ask the models of every labelled share about a split."""
    questions = Questions.of(plan, split)
    return {
        share: ask_all(
            [run for run in runs if run.share == share],
            questions,
            answers_file(output, share, split),
            engines,
            tell,
        )
        for share, _ in plan.parts
    }


if __name__ == "__main__":
    try:
        typer.run(study)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
