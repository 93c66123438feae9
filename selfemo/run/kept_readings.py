"""Keeps what a run's model reads as its first teacher, for other runs that begin from the same model.

The arms of a study continue one start, which reads the same turns in the same views for each of them, for
longer than an arm of the cut model trains (docs/study). Greedy completions depend on weights, requests and
engine alone, so a later run takes them from `selfplay.teacher_cache` if all of these are the same. Before a
run's first optimizer step its weights are those of its model directory; what is read later is not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError
from selfemo.common.files import new_file
from selfemo.config.schema import RunConfig
from selfemo.process.arithmetic import arithmetic
from selfemo.process.dealing import Deal
from selfemo.records.content import model_digests
from selfemo.records.manifest import digest_of
from selfemo.rollout.api import Completion, GenerationRequest, Generator
from selfemo.rollout.vllm_engine import engine_version

WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class KeptReadings:
    """Where readings are kept, and who reads."""

    directory: Path
    reader: str
    """Digest of everything that a greedy completion depends on besides its request; see `reader_digest`."""

    def file_of(self, requests: Sequence[GenerationRequest]) -> Path:
        """Name the file of one generator call's completions. Greedy requests are told apart by what they ask:
        their seeds decide nothing.
        """
        asked = [(r.prompt_ids, r.max_tokens, r.scored_ids) for r in requests]
        return self.directory / f"{digest_of([self.reader, asked])}.json"


@dataclass(frozen=True)
class KeepingGenerator:
    """A generator that looks for kept completions first, and keeps those that it generates."""

    kept: KeptReadings
    generator: Generator
    deal: Deal
    """Of the ranks that share the engine: one of them reads and writes the file for all."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Return one completion per request, in order; the requests are greedy.

        Raises:
            UserError: a kept file is damaged, or one cannot be written; names it.
        """
        file = self.kept.file_of(requests)
        (found,) = self.deal(_load, [file])
        if found is not None:
            return found
        completions = self.generator.generate(requests)

        def store(target: Path) -> None:
            _store(target, completions)

        self.deal(store, [file])
        return completions


def reader_digest(config: RunConfig, model_dir: Path) -> str:
    """Hash what decides how a run's model answers greedily before it is trained: every byte of the model
    directory that a run obeys, the precision, the engine's settings and version, the processor's kind.

    Raises:
        UserError: a file cannot be read.
    """
    files: dict[str, str] = {}
    for name, digest in model_digests(model_dir).items():
        if name.endswith(WEIGHTS_SUFFIX):  # whole: another model must never answer for this one
            with (model_dir / name).open("rb") as weights:
                digest = hashlib.file_digest(weights, "blake2b").hexdigest()
        files[name] = digest
    versions = [engine_version(), *arithmetic()]
    settings = [config.train.dtype, config.model.max_length, asdict(config.rollout)]
    return digest_of([files, versions, settings])


def _load(file: Path) -> list[Completion] | None:
    try:
        rows: list[list[Any]] = json.loads(file.read_text(encoding="utf-8"))
        return [
            Completion(tuple(ids), tuple(logprobs), ended, tuple(scored))
            for ids, logprobs, ended, scored in rows
        ]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}): make it readable, or name another directory as "
            "selfplay.teacher_cache"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not readings that a run kept ({error}): remove it") from None


def _store(file: Path, completions: Sequence[Completion]) -> None:
    rows = [(c.token_ids, c.logprobs, c.finished, c.scored_logprobs) for c in completions]
    with new_file(file, "selfplay.teacher_cache") as temporary:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")
