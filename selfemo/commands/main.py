"""Assemble the `selfemo` command. Commands import their libraries when they run, so `--help` and
input checks stay fast.

A UserError is printed as one line and exits with status 2. Any other error is a bug and keeps its
traceback.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from selfemo.commands.chat import chat
from selfemo.commands.corpus import app as corpus_commands
from selfemo.commands.doctor import doctor
from selfemo.commands.eval import build_command as build_eval
from selfemo.commands.flywheel import app as flywheel_commands
from selfemo.commands.plan import plan
from selfemo.commands.report import report
from selfemo.common.arguments import with_home
from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.common.printable import printable
from selfemo.inference.engines import StandaloneEngines
from selfemo.process.streams import standard_streams

BARRED = {
    errno.EACCES: "permission denied: make it readable",
    errno.EPERM: "permission denied: make it readable",
    errno.ENAMETOOLONG: "longer than a path may be: correct it",
}
"""What any command may meet at any path, such as a directory that may not be entered."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file; every field has a default (docs/configuration.md)."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as train.learning_rate=1e-4.")]


PLANNED = {"nodes": "--nodes", "processes_per_node": "--processes-per-node", "gpu": "--gpu"}
"""Options of `train` that a dry run alone reads, by parameter."""


@app.command()
def train(
    context: typer.Context,
    config: ConfigOption = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything that can be checked without a process group, then stop."
        ),
    ] = False,
    nodes: Annotated[
        int,
        typer.Option(min=1, envvar="GROUP_WORLD_SIZE", help="With --dry-run: machines the run will have."),
    ] = 1,
    processes_per_node: Annotated[
        int,
        typer.Option(
            min=1, envvar="LOCAL_WORLD_SIZE", help="With --dry-run: processes on each (one per GPU)."
        ),
    ] = 1,
    gpu: Annotated[
        str,
        typer.Option(
            help="With --dry-run: print the plan for this kind of GPU, such as h100-80g; "
            "weights and corpus may be missing yet."
        ),
    ] = "",
) -> None:
    """Train: SFT start, then SELF-GRPO by self-play. Run it under torchrun."""
    from selfemo.config.load import load_config

    settings = load_config(config, overrides or [])
    if dry_run:
        from selfemo.commands.preflight import preflight

        typer.echo(preflight(settings, nodes * processes_per_node, planning=bool(gpu), nodes=nodes))
        if gpu:
            plan(overrides, config, nodes, processes_per_node, gpu)
        return
    for name, option in PLANNED.items():  # from the environment they are torchrun's
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"{option} is read by a dry run alone, and this would train: add --dry-run, or leave it out"
            )
    from selfemo.commands.train import run_training

    run_training(settings)


app.add_typer(corpus_commands, name="corpus")
app.add_typer(flywheel_commands, name="flywheel")
app.command()(doctor)
app.command()(plan)
app.command()(report)
app.command("eval")(build_eval(StandaloneEngines))
app.command()(chat)


def main() -> None:
    """Entry point of the `selfemo` command."""
    sys.argv = with_home(sys.argv)
    try:
        with standard_streams():
            app()
    except UserError as error:
        print(f"selfemo: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if error.errno not in BARRED:
            raise
        print(f"selfemo: {printable(str(error.filename))}: {BARRED[error.errno]}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
