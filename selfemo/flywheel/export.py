"""Exports kept records as a training corpus in the project's JSONL.

Each record is one dialogue, with its last turn labelled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError
from selfemo.common.files import new_file
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.record import Record
from selfemo.flywheel.rule import READ_BACK
from selfemo.flywheel.store import Filter, FlywheelStore

LABELS_FILE = "labels.json"
SUFFIX = ".jsonl"
"""Ending by which a file is recognised as the project's JSONL."""
HELD_OUT = ("dev", "test")
"""Names that a file of that form is read as a held-out split under."""


def export_jsonl(store: FlywheelStore | JoinedStores, path: Path, role: str | None = None) -> int:
    """Write every kept record as a dialogue; returns their number. The file appears whole or not at all.

    Args:
        path: a new .jsonl file, which is read as training data; the closed label set is written beside it as
            labels.json, which a reader of the corpus needs.
        role: only records of this role; None for both.

    Raises:
        UserError: the target has another name than that; it or a different labels.json exists already or
            cannot be written; or nothing was kept.
    """
    if path.suffix != SUFFIX or path.stem in HELD_OUT:
        raise UserError(
            f"{path}: expected a name that is read as training data, such as {path.parent / 'train.jsonl'}"
        )
    label_path = path.parent / LABELS_FILE
    label_text = json.dumps(store.labels()) + "\n"
    if path.exists():
        raise UserError(f"{path}: exists already; expected a new file; remove it or name another")
    if label_path.exists() and label_path.read_text(encoding="utf-8", errors="replace") != label_text:
        raise UserError(f"{label_path}: holds other labels than this flywheel; export to another directory")
    with new_file(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = 0
        with temporary.open("w", encoding="utf-8") as file:
            for record in store.find(Filter(kept=True, role=role)):
                if record.reason == READ_BACK:
                    continue  # the reply's own record is there
                file.write(json.dumps(dialogue_row(record), ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise UserError(
                f"{store.path}: nothing was kept, so there is nothing to export "
                "(selfemo flywheel list shows why)"
            )
        if not label_path.exists():
            with new_file(label_path) as temporary_labels:
                temporary_labels.write_text(label_text, encoding="utf-8")
    return count


def dialogue_row(record: Record) -> dict[str, Any]:
    """Make a record one line of the project's JSONL.

    Its provenance stands under "meta", which readers of the corpus ignore.
    """
    turns: list[dict[str, Any]] = []
    for turn in record.dialogue[:-1]:
        turns.append({"speaker": turn.speaker, "text": turn.text})
    last = record.dialogue[-1]
    turns.append({"speaker": last.speaker, "text": last.text, "labels": list(last.labels)})
    meta = {
        "record": record.record_id,
        "role": record.role,
        "source": record.source,
        "parent": record.parent,
        "score": record.score,
        "agreement": record.agreement,
        "weight_version": record.weight_version,
        "reason": record.reason,
    }
    return {"id": f"record-{record.record_id}", "turns": turns, "meta": meta}
