"""Trains and compares the variants of a study.

Usage: python -m tools.study STUDY.yaml --output DIR [--at-once 2] [--seed 1] [--test]

The same command resumes training. Dev is evaluated every time; --test evaluates the test split too:
once, when nothing will be changed any more. Writes DIR/report.md, figures, and every model's answers as
JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.inference.engines import StandaloneEngines
from tools.study.answers import ask_all
from tools.study.plan import only_seeds, read_plan
from tools.study.render import describe_variants, plot_split, render_split
from tools.study.runs import continuations, starts, train_all


def study(
    study_file: Annotated[Path, typer.Argument(help="Study file, such as examples/configs/study_cpu.yaml.")],
    output: Annotated[Path, typer.Option(help="Directory for runs and results.")],
    at_once: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate the test split too, once, at the end.")
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
    first, others = starts(plan, study_file, output), continuations(plan, study_file, output)
    output.mkdir(parents=True, exist_ok=True)
    train_all(first, plan.processes, at_once, tell)
    train_all(others, plan.processes, at_once, tell)
    runs, engines = [*first, *others], StandaloneEngines()
    parts = [describe_variants(plan), ""]
    for split in ("dev", "test") if test else ("dev",):
        answers = ask_all(runs, split, plan.limit, output / f"{split}.json", engines, tell)
        plot_split(answers, plan, output / f"{split}.png")
        parts += [render_split(answers, plan), f"![{split}]({split}.png)", ""]
    report = output / "report.md"
    report.write_text("\n".join(parts), encoding="utf-8")
    typer.echo("\n".join(parts))
    typer.echo(f"results: {report}")


if __name__ == "__main__":
    try:
        typer.run(study)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
