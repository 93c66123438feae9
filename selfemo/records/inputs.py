"""Records what a run reads, its model and its corpus, by content: inputs.json holds digests of both.

Digests decide what a run is, and paths do not: an input that was moved, copied or spelled otherwise is the
same input, and one that was changed is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.common.files import replace_text
from selfemo.common.json_file import read_json_object
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.conversation import Corpus
from selfemo.models.hub import local_directory
from selfemo.records.content import corpus_digests, model_digests

INPUTS_NAME = "inputs.json"
CORPUS_PATHS = ("corpus.path", "corpus.hold_out", "corpus.unlabelled")
INPUT_PATHS = ("model.path", *CORPUS_PATHS)
"""Settings that say where an input lies."""
RESTORE = "restore it as the run wrote it"

Inputs = dict[str, dict[str, str]]
"""{"model": {file: digest}, "corpus": {part: digest}}; no files for a model that the run initialised."""


def record_inputs(root: Path, config: RunConfig, corpus: Corpus) -> None:
    """Write a run's inputs.json, or compare it with the one that an earlier start has written.

    Raises:
        UserError: as `check_inputs`.
    """
    if not check_inputs(root, config, corpus):
        inputs = {"model": _model_of(config), "corpus": corpus_digests(corpus)}
        replace_text(root / INPUTS_NAME, json.dumps(inputs, indent=1) + "\n")


def check_inputs(root: Path, config: RunConfig, corpus: Corpus) -> bool:
    """Compare model and corpus with those that the run began with; False if the run recorded none.

    Raises:
        UserError: one of them was changed since; names its part.
    """
    recorded = read_inputs(root)
    if recorded is None:
        return False
    for what, now in (("model", _model_of(config)), ("corpus", corpus_digests(corpus))):
        if part := next(iter(_differing(recorded[what], now)), ""):
            named = local_directory(config.model.path) if what == "model" else config.corpus.path
            raise UserError(
                f"{named or corpus.name}: other {part} than the run in {root} began with: restore it, "
                "or choose another output_dir"
            )
    return True


def same_inputs(root: Path, names: Mapping[str, tuple[str, str]], config: RunConfig) -> Iterator[str]:
    """Yield those of the changed path settings under which the run finds what it began with.

    Args:
        names: of the settings, with the path before and the path now.

    Raises:
        UserError: an input cannot be read where it is now.
    """
    moved = [name for name, (before, now) in names.items() if _resolved(before) != _resolved(now)]
    yield from names.keys() - set(moved)
    recorded = read_inputs(root) if moved else None
    if recorded is None:
        return
    if "model.path" in moved and recorded["model"] and _model_of(config) == recorded["model"]:
        yield "model.path"
    in_corpus = [name for name in moved if name in CORPUS_PATHS]
    if in_corpus and corpus_digests(load_run_corpus(config)) == recorded["corpus"]:
        yield from in_corpus


def read_inputs(root: Path) -> Inputs | None:
    """Read inputs.json; None for a run that began before it was written.

    Raises:
        UserError: it is damaged.
    """
    path = root / INPUTS_NAME
    try:
        stored = read_json_object(path, RESTORE)
    except FileNotFoundError:
        return None
    for what in ("model", "corpus"):
        digests = stored.get(what)
        if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
            raise UserError(f"{path}: not the digests of a run's inputs: {RESTORE}")
    return stored


def _model_of(config: RunConfig) -> dict[str, str]:
    return model_digests(local_directory(config.model.path)) if config.model.path else {}


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    yield from (name for name in {**now, **before} if before.get(name) != now.get(name))


def _resolved(paths: str) -> list[Path]:
    """Resolve a path, or a list of names and paths with commas."""
    return [Path(part.strip()).resolve() for part in paths.split(",")]
