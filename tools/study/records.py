"""Carries a study to another machine: the records of runs that have ended and were asked, and their answers.

Usage: python -m tools.study.records save OUTPUT FILE.zip | restore FILE.zip OUTPUT

A run's model is hundreds of times as large as its records and, once it has been asked about every split, is
needed for nothing but other variants of its draw. So a study goes on elsewhere with the draws that are left.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.records.directory import CONFIG_NAME, SUMMARY_NAME
from selfemo.records.inputs import INPUTS_NAME
from tools.study.answers import SplitAnswers, load_answers
from tools.study.once import RECORD
from tools.study.runs import StudyRun

RUN_FILES = (CONFIG_NAME, SUMMARY_NAME, INPUTS_NAME)
SPLITS = ("dev", "test")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the archive, so that the same records are the same bytes."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def save(
    output: Annotated[Path, typer.Argument(help="Directory of the study's runs.")],
    archive: Annotated[Path, typer.Argument(help="File to write.")],
) -> None:
    """Write the records of every run that was asked, and the answers."""
    files = sorted(set(_files(output)))
    if not files:
        raise UserError(f"{output}: no model of a study was asked here: run the study first")
    temporary = archive.with_name(f".{archive.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as written:
        for file in files:
            name = file.relative_to(output).as_posix()
            written.writestr(zipfile.ZipInfo(name, EPOCH), file.read_bytes(), zipfile.ZIP_DEFLATED)
    os.replace(temporary, archive)
    runs = sum(file.name == SUMMARY_NAME for file in files)
    typer.echo(f"{archive}: records of {runs} runs, {archive.stat().st_size / 1e3:,.0f} kB")


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="File that `save` wrote.")],
    output: Annotated[Path, typer.Argument(help="Directory for the study's runs; must not exist.")],
) -> None:
    """Lay the records out as the study finds them."""
    if output.exists():
        raise UserError(f"{output}: exists already, and records of two studies do not mix: name another")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        try:
            _unpack(archive, Path(temporary) / output.name)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{archive}: cannot be read ({error}): expected a file of `save`") from None
        os.replace(Path(temporary) / output.name, output)
    typer.echo(f"{output}: {len(list(output.rglob(SUMMARY_NAME)))} runs, without their models")


def _unpack(archive: Path, directory: Path) -> None:
    with zipfile.ZipFile(archive) as read:
        for name in read.namelist():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{archive}: {name!r} lies outside the study: expected a file of `save`")
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(read.read(name))


def _files(output: Path) -> Iterator[Path]:
    """Yield the files to carry: a run's only if every answers file of its share has the run's answers."""
    if (output / RECORD).is_file():
        yield output / RECORD
    for part in [output, *sorted(output.glob("share-*"))]:
        kept = [part / f"{split}.json" for split in SPLITS if (part / f"{split}.json").is_file()]
        yield from kept
        answers = [load_answers(path) for path in kept]
        for summary in sorted(part.glob(f"seed-*/*/{SUMMARY_NAME}")) if kept else ():
            place = summary.parent
            run = StudyRun(int(place.parent.name.removeprefix("seed-")), place.name, place, ())
            if all(_has_asked(found, run) for found in answers):
                yield from (place / name for name in RUN_FILES if (place / name).is_file())


def _has_asked(answers: SplitAnswers, run: StudyRun) -> bool:
    return any(m.seed == run.seed and m.trained_as == run.trained_as for m in answers.of(run.variant))


if __name__ == "__main__":
    try:
        app(standalone_mode=False)
    except UserError as error:
        print(f"records: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
