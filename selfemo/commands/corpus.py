"""Check a corpus, show its figures, or measure the texts that two corpora share (`selfemo corpus`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfemo.commands.corpus_get import fetch, import_other
from selfemo.commands.corpus_tables import (
    counts_table,
    labels_table,
    lengths_table,
    overlap_table,
    print_lines,
    transitions_table,
)
from selfemo.common.errors import UserError
from selfemo.common.files import check_target, new_file
from selfemo.corpora.check import check_corpus
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.overlap import measure_overlap, texts_of
from selfemo.corpora.problems import raise_first
from selfemo.corpora.registry import AUTO, locate_corpus
from selfemo.corpora.stats import SPLITS, write_plot
from selfemo.process.plain_console import plain_console

app = typer.Typer(help="Get and look at the dialogues a run reads.", no_args_is_help=True)
app.command()(fetch)
app.command("import")(import_other)

CorpusArgument = Annotated[
    str,
    typer.Argument(
        help="A corpus's name (meld, emorynlp, everyday, ...) or the path of its directory or file."
    ),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="Format of a path, where its files do not show it.")
]


@app.command()
def check(
    corpus: CorpusArgument = AUTO,
    name: FormatOption = AUTO,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as JSON.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Problems shown; 0 shows all.")] = 50,
) -> None:
    """Validate a corpus: counts, label shares, majority baselines, what looks odd, and every problem with
    its line (exit status 2 if there is one)."""
    if json_file is not None:
        check_target(json_file, "--json")
    report = check_corpus(corpus, name)
    console = plain_console()
    console.print(f"{report.name}: {report.path}", soft_wrap=True)
    if report.splits:
        console.print(counts_table(report))
        console.print(labels_table(report))
    for split, overlap in report.shared_with_train:
        console.print(f"{overlap.shared} of {overlap.long_texts} long texts of {split} also occur in train")
    if json_file is not None:
        with new_file(json_file, "--json") as temporary:
            temporary.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    print_lines(console, [f"odd: {oddity}" for oddity in report.oddities], limit)
    print_lines(console, [str(problem) for problem in report.problems], limit)
    if report.problems:
        raise UserError(
            f"{report.path}: {len(report.problems)} problems, listed above: correct them and check again"
        )
    odd = len(report.oddities)
    console.print(f"no problems, {odd} oddities, listed above" if odd else "no problems")


@app.command()
def stats(
    corpus: CorpusArgument = AUTO,
    name: FormatOption = AUTO,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw label shares, lengths and transitions into this .png, .svg or .pdf."),
    ] = None,
) -> None:
    """Show lengths of turns and dialogues per split, and how one emotion follows another in train."""
    if plot is not None:
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--plot {plot}: expected a .png, .svg or .pdf file: name one")
        check_target(plot, "--plot")
    loaded = _read(corpus, name)
    console = plain_console()
    console.print(lengths_table(loaded))
    console.print(transitions_table(loaded))
    if plot is not None:
        write_plot(loaded, plot)
        console.print(f"plot: {plot}", soft_wrap=True)


@app.command()
def overlap(
    corpus: CorpusArgument,
    other: Annotated[
        str, typer.Argument(help="The corpus whose training split is compared: a name or a path.")
    ],
) -> None:
    """Count the long texts of CORPUS, per split, that also occur in the training split of OTHER."""
    loaded, compared = _read(corpus, AUTO), _read(other, AUTO)
    train_texts = texts_of(compared.split("train"))
    found = {
        name: measure_overlap(texts_of(loaded.split(name)), train_texts)
        for name in SPLITS
        if loaded.split(name)
    }
    plain_console().print(
        overlap_table(f"Long texts of {loaded.name} that occur in {compared.name} train", found)
    )


def _read(corpus: str, name: str) -> Corpus:
    fmt, path = locate_corpus(corpus, name)
    return fmt.read(path, raise_first)
