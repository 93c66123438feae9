"""Reads a run's records: configuration, metrics.jsonl, samples.jsonl, summary.json, the flywheel.

A run that is going on may be in the middle of a line: the part after the last line break is left for the next
reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
from selfemo.records.shapes import misshapen

Json = dict[str, Any]

LARGEST = 1e100
"""Bound of a figure. It is finite, and so are sums, products and axes of several."""
DIGITS = 18
"""Most characters of a whole number."""


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
        UserError: it is no run's directory, or one of its records is damaged or cannot be read.
    """
    if not (root / CONFIG_NAME).is_file():
        raise UserError(f"{root}: no {CONFIG_NAME} there; expected the output_dir of a run (selfemo train)")
    return RunRecords(
        root=root,
        # read_config and not load_config: a corpus or loss of another checkout is no reason to show nothing
        config=read_config(root / CONFIG_NAME),
        events=read_events(root / METRICS_NAME),
        dialogues=tuple(_sound(root / SAMPLES_NAME, read_jsonl(root / SAMPLES_NAME, "groups"))),
        summary=_read_json(root / SUMMARY_NAME, "summary"),
        training_dialogues=_read_json(root / TRAINING_DIALOGUES_NAME, "training dialogues"),
    )


def read_events(path: Path) -> tuple[Json, ...]:
    """Read metrics.jsonl.

    Raises:
        UserError: a record is damaged, or lacks what every reader needs of it; names its line.
    """
    return tuple(_sound(path, read_jsonl(path, "event")))


def parse_json(data: bytes) -> Any:
    """Parse JSON as a run writes it: UTF-8, figures within LARGEST, whole numbers of few digits.

    Raises:
        ValueError, RecursionError: it is none; says why.
    """
    content = json.loads(data.decode(), parse_float=_figure, parse_int=_whole, parse_constant=_figure)
    if b"\\ud" in data.lower():  # half of a pair can be read but not shown
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _figure(number: str) -> float:
    if not abs(float(number)) <= LARGEST:  # NaN is not
        raise ValueError(f"{number[:20]}: expected a finite number")
    return float(number)


def _whole(number: str) -> int:
    if len(number) > DIGITS:
        raise ValueError(f"{number[:20]}: expected a whole number of at most {DIGITS} digits")
    return int(number)


def _sound(path: Path, records: Sequence[Json]) -> Iterator[Json]:
    """Yield the records; UserError for one that lacks what every reader needs of it."""
    for number, record in enumerate(records, 1):
        if fault := misshapen(record.get("event", "dialogue"), record):
            raise UserError(f"{path}:{number}: damaged ({fault}): restore it as the run wrote it")
        yield record


def _read_json(path: Path, kind: str) -> Json | None:
    """Read a JSON object of one of the SHAPES; None if there is no file."""
    if not path.is_file():
        return None
    try:
        content = parse_json(read_bytes(path))
        fault = misshapen(kind, content) if isinstance(content, dict) else "not a JSON object"
    except (ValueError, RecursionError) as error:
        fault = f"not JSON ({error})"
    if fault:
        raise UserError(f"{path}: damaged ({fault}): restore it as the run wrote it")
    found: Json = content
    return found


def read_bytes(path: Path) -> bytes:
    """Read a file of a run; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable") from None


def read_jsonl(path: Path, key: str) -> Sequence[Json]:
    """Read the whole lines of a JSON-lines file, which may still grow or end in a broken line.

    Args:
        key: a key that every record has.

    Raises:
        UserError: a line is not a JSON object with `key`; names it.
    """
    if not path.is_file():
        return []
    whole, _, _ = read_bytes(path).rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            record = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error}); expected one record a line, as the run wrote it"
            ) from None
        if not isinstance(record, dict) or key not in record:
            raise UserError(f"{path}:{number}: expected a JSON object with {key!r}, as the run wrote it")
        records.append(record)
    return records
