"""Import a corpus from another format into a directory of the project's JSONL, with its provenance.

The directory appears whole or not at all. It holds the splits, labels.json, the label map that was used
(label_map.json, to be edited and given to another import) and provenance.json with the SHA-256 of every
source file. Each dialogue's "meta" names its file and line, and what the label map left out of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from selfemo.common.errors import UserError, nearest
from selfemo.common.modules import modules_of
from selfemo.corpora import imports
from selfemo.corpora.check import MAX_PROBLEMS
from selfemo.corpora.files import MAX_FILE_BYTES, MAX_LINE_CHARS
from selfemo.corpora.import_rows import Imported, row_of
from selfemo.corpora.imports.raw import Files, ImportFormat
from selfemo.corpora.label_map import LabelMap
from selfemo.corpora.problems import Problem
from selfemo.corpora.readers.jsonl import LABELS_FILE
from selfemo.corpora.turns import TurnChecker


@functools.cache
def import_formats() -> dict[str, ImportFormat]:
    """Return every import format by name, in alphabetical order."""
    found = {fmt.name: fmt for module in modules_of(imports) for fmt in getattr(module, "FORMATS", ())}
    return dict(sorted(found.items()))


def import_format(name: str) -> ImportFormat:
    """Return a format by its name; UserError if there is none."""
    known = import_formats()
    if name not in known:
        raise UserError(f"corpus import {name}: expected one of {', '.join(known)}{nearest(name, known)}")
    return known[name]


def import_corpus(
    fmt: ImportFormat, source: Path, output: Path, label_map: LabelMap | None = None, skip: bool = False
) -> Imported:
    """Write a source's dialogues as a corpus in the project's JSONL.

    Args:
        output: a new directory.
        label_map: None for the format's own.
        skip: leave dialogues with faults out; otherwise any fault means that nothing is written.

    Raises:
        UserError: the source holds no such files, or no dialogue; `output` exists or cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise UserError(f"{output}: exists already; expected a new directory: remove it or name another")
    files = fmt.find(source)
    if not files:
        raise UserError(f"{source}: expected {fmt.what}: check the path")
    mapping = label_map or LabelMap(fmt.labels)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        found = _write_splits(fmt, files, mapping, temporary)
        if not sum(found.dialogues.values()) and (skip or not found.problems):
            raise UserError(f"{source}: holds no dialogue that can be used: check the path and the format")
        if found.problems and not skip:
            return found
        facts = _provenance(fmt, files, source, found)
        texts = {"provenance.json": facts, "label_map.json": dict(mapping.targets)}
        for name, value in {**texts, **({LABELS_FILE: mapping.labels} if mapping.labels else {})}.items():
            (temporary / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}): name another directory") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _write_splits(fmt: ImportFormat, files: Files, mapping: LabelMap, directory: Path) -> Imported:
    found = Imported()
    seen: set[tuple[str, str]] = set()

    def report(problem: Problem) -> None:
        if problem.odd:
            return  # `corpus check` looks for these
        if len(found.problems) == MAX_PROBLEMS:
            raise UserError(f"{problem}; {MAX_PROBLEMS} problems before it: is it of the format {fmt.name}?")
        found.problems.append(problem)

    with ExitStack() as stack:
        outputs: dict[str, IO[bytes]] = {}
        for dialogue in fmt.read(files, report):
            key = dialogue.split, dialogue.dialogue_id
            checker = TurnChecker(dialogue.path, mapping.labels, report)
            if key in seen or not dialogue.dialogue_id.strip() or not dialogue.dialogue_id.isprintable():
                checker.fault(dialogue.line, "its dialogue's id is empty, not printable or used before")
                continue
            seen.add(key)
            row = row_of(dialogue, checker, mapping, found)
            if row is None:
                continue
            text = json.dumps(row, ensure_ascii=False)
            if len(text) > MAX_LINE_CHARS:
                checker.fault(dialogue.line, f"its dialogue takes {len(text)} characters: split it")
                continue
            if dialogue.split not in outputs:
                path = directory / f"{dialogue.split}.jsonl"
                outputs[dialogue.split] = stack.enter_context(path.open("wb"))
            outputs[dialogue.split].write(text.encode("utf-8", "replace") + b"\n")
            if outputs[dialogue.split].tell() > MAX_FILE_BYTES:
                raise UserError(
                    f"{dialogue.path}: more than {MAX_FILE_BYTES} bytes of one split: import parts"
                )
            found.dialogues[dialogue.split] += 1
    return found


def _provenance(fmt: ImportFormat, files: Files, source: Path, found: Imported) -> dict[str, Any]:
    return {
        "format": fmt.name,
        "origin": fmt.origin,
        "files": [_digest(path, source) for path in _distinct(path for _, path in files)],
        "problems": len(found.problems),
    }


def _digest(path: Path, source: Path) -> dict[str, Any]:
    name = path.relative_to(source) if path.is_relative_to(source) and path != source else Path(path.name)
    with path.open("rb") as file:
        return {"file": name.as_posix(), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _distinct(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))
