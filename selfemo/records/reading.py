"""Reads a run's records: configuration, metrics.jsonl, samples.jsonl, summary.json, the flywheel.

A run that is going on may be in the middle of a line: the part after the last line break is left for the next
reading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError
from selfemo.config.load import read_config
from selfemo.config.schema import RunConfig
from selfemo.records.directory import (
    CONFIG_NAME,
    METRICS_NAME,
    SAMPLES_NAME,
    SUMMARY_NAME,
    TRAINING_DIALOGUES_NAME,
)

Json = dict[str, Any]


@dataclass(frozen=True)
class RunRecords:
    """All records of a run but the flywheel's store, which is read at the place of use."""

    root: Path
    config: RunConfig
    events: tuple[Json, ...]
    """metrics.jsonl, in order."""
    dialogues: tuple[Json, ...]
    """samples.jsonl, in order."""
    summary: Json | None
    """None while the run is not finished."""
    training_dialogues: Json | None = None
    """training_dialogues.json; None where the run began before it was written."""

    def of(self, event: str) -> list[Json]:
        return [record for record in self.events if record["event"] == event]

    def evaluation(self, stage: str) -> Json | None:
        """Return the evaluation of a stage; None if it has not taken place."""
        return next((record for record in self.of("eval") if record["stage"] == stage), None)


def read_run(root: Path) -> RunRecords:
    """Read a run's output directory, finished or not.

    Raises:
        UserError: it is no run's directory, or a line of its records is not a JSON object.
    """
    if not (root / CONFIG_NAME).is_file():
        raise UserError(f"{root}: no {CONFIG_NAME} there; expected the output_dir of a run (selfemo train)")
    summary, dialogues = root / SUMMARY_NAME, root / TRAINING_DIALOGUES_NAME
    return RunRecords(
        root=root,
        # read_config and not load_config: a corpus or loss of another checkout is no reason to show nothing
        config=read_config(root / CONFIG_NAME),
        events=tuple(read_jsonl(root / METRICS_NAME, "event")),
        dialogues=tuple(read_jsonl(root / SAMPLES_NAME, "groups")),
        summary=json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
        training_dialogues=json.loads(dialogues.read_text(encoding="utf-8")) if dialogues.is_file() else None,
    )


def read_jsonl(path: Path, key: str) -> Sequence[Json]:
    """Read the whole lines of a JSON-lines file, which may still grow or end in a broken line.

    Args:
        key: a key that every record has.

    Raises:
        UserError: a line is not a JSON object with `key`; names it.
    """
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error}); expected one record a line, as the run wrote it"
            ) from None
        if not isinstance(record, dict) or key not in record:
            raise UserError(f"{path}:{number}: expected a JSON object with {key!r}, as the run wrote it")
        records.append(record)
    return records
