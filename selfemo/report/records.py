"""Reads what a run recorded: metrics.jsonl, samples.jsonl, summary.json and the flywheel's totals.

A live run may be in the middle of a line: an incomplete last line is left for the next reading.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.errors import UserError
from selfemo.flywheel.store import FlywheelStore, Total

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class RunRecords:
    """Everything the report shows."""

    root: Path
    events: tuple[dict[str, Any], ...]
    dialogues: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None
    """None while the run is not finished."""
    flywheel: tuple[Total, ...]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [record for record in self.events if record["event"] == event]


def read_run(root: Path) -> RunRecords:
    """Read a run directory.

    Raises:
        UserError: there is no metrics.jsonl, or a line of it is not JSON.
    """
    if not (root / METRICS_NAME).is_file():
        raise UserError(f"{root}: no {METRICS_NAME} there; expected the output_dir of a run that has begun")
    summary, store = root / "summary.json", root / "flywheel.sqlite"
    totals: tuple[Total, ...] = ()
    if store.is_file():
        with closing(FlywheelStore(store)) as opened:
            totals = tuple(opened.totals())
    return RunRecords(
        root,
        _read_jsonl(root / METRICS_NAME),
        _read_jsonl(root / "samples.jsonl"),
        json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
        totals,
    )


def _read_jsonl(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        return ()
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    records = []
    for number, line in enumerate(whole.split("\n") if whole else (), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error.msg}); expected one record a line, as the run wrote it") from None
    return tuple(records)
