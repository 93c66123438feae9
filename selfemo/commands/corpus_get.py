"""Get a corpus: fetch a public one, or import another format (`selfemo corpus fetch`, `import`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.commands.corpus_tables import print_lines
from selfemo.common.errors import UserError
from selfemo.common.printable import printable
from selfemo.corpora.fetch import HOST, fetch_corpus, source_of, target_directory
from selfemo.corpora.importing import import_corpus, import_format, import_formats
from selfemo.corpora.label_map import read_label_map
from selfemo.corpora.sources import SOURCES
from selfemo.process.plain_console import plain_console


def fetch(
    name: Annotated[str, typer.Argument(help=f"The corpus: {' or '.join(SOURCES)}.")],
    host: Annotated[str, typer.Option("--from", help="Mirror of GitHub's raw files.")] = HOST,
) -> None:
    """Fetch a public corpus into $SELFEMO_DATA, at a pinned commit and checked by its SHA-256."""
    source, console = source_of(name), plain_console(soft_wrap=True)
    directory = target_directory(name)
    console.print(f"{name}: {source.paper}\nlicence: {source.licence}")
    for file in source.files:
        console.print(f"source: github.com/{file.repository} at {file.commit[:12]}, {file.path}")
    written = fetch_corpus(name, directory, host, console.print)
    told = f"{len(written)} files written" if written else "all files are there already"
    console.print(f"{directory}: {told}; `selfemo corpus check {name}` looks at them")


def import_other(
    name: Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(import_formats()))],
    source: Annotated[Path, typer.Argument(help="Directory or file of the corpus as it is published.")],
    output: Annotated[Path, typer.Argument(help="New directory of the project's JSONL.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label map to use; an import writes its own as label_map.json.")
    ] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave faulty dialogues out.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Problems shown; 0 shows all.")] = 50,
) -> None:
    """Turn a corpus of another format into the project's JSONL; votes and provenance are kept."""
    fmt, console = import_format(name), plain_console(soft_wrap=True)
    label_map = read_label_map(labels) if labels is not None else None
    console.print(f"{name}: {fmt.origin}")
    found = import_corpus(fmt, source, output, label_map, skip)
    print_lines(console, [str(problem) for problem in found.problems], limit)
    if found.problems and not skip:
        raise UserError(
            f"{source}: {len(found.problems)} problems, listed above; nothing was written: correct them, or "
            "leave the faulty dialogues out with --skip"
        )
    sizes = ", ".join(f"{split} {count:,}" for split, count in found.dialogues.items())
    console.print(
        printable(f"{output}: dialogues: {sizes}; {found.turns:,} turns, {found.labelled:,} with labels")
    )
    if found.problems:
        console.print(f"left out for {len(found.problems):,} problems: the dialogues above")
    if found.unmapped:
        console.print(f"{found.unmapped:,} turns have labels that the label map leaves out")
    if found.cut:
        console.print(f"{found.cut:,} turns have more than three labels: the first three are kept")
