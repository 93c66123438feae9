"""Defines the flywheel's SQLite tables, and converts a record to a row and back.

    records   one row per record, small columns only
    details   fields that are read one record at a time (context, prompt, candidates), as JSON
    label_set the closed label set, so that an export is a corpus of its own
    totals    running counts by role, label, reason and kept, updated in the same transaction: a summary reads
              some dozen rows however many records there are

Triggers refuse to change or delete a record. A record's place in the run is unique.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from selfemo.flywheel.record import Record

SCHEMA_VERSION = 1
_KEYS = (
    "record_id",
    "iteration",
    "episode",
    "turn",
    "role",
    "source",
    "parent",
    "weight_version",
    "speaker",
    "text",
)
_OUTCOME = ("labels", "gold", "target", "score", "agreement", "kept", "reason")
COLUMNS = _KEYS + _OUTCOME
COLUMN_KINDS = (
    *(int, int, int, int, str, str, int | None, int, str, str),
    *(str, str, str, int | float, int | float, int, str),
    str,
)
"""Types of a row of SELECT: the columns, then the detail."""
SCHEMA = f"""
create table records (
    record_id integer primary key, iteration integer not null, episode integer not null, \
turn integer not null, role text not null,
    source text not null, parent integer, weight_version integer not null, \
speaker text not null, text text not null,
    labels text not null, gold text not null, target text not null, \
score real not null, agreement real not null,
    kept integer not null, reason text not null,
    unique (iteration, episode, turn, role)
);
create table details (record_id integer primary key references records, detail text not null);
create table label_set (label text primary key);
create table totals (
    role text not null, label text not null, kept integer not null, \
reason text not null, count integer not null,
    primary key (role, label, kept, reason)
) without rowid;
create index kept_records on records (record_id) where kept = 1;
create trigger records_keep before update on records \
begin select raise(abort, 'the flywheel is append-only'); end;
create trigger records_stay before delete on records \
begin select raise(abort, 'the flywheel is append-only'); end;
create trigger details_keep before update on details \
begin select raise(abort, 'the flywheel is append-only'); end;
create trigger details_stay before delete on details \
begin select raise(abort, 'the flywheel is append-only'); end;
pragma user_version = {SCHEMA_VERSION};
"""
PRIMARY_LABEL = (
    "case instr(labels, ', ') when 0 then labels else substr(labels, 1, instr(labels, ', ') - 1) end"
)
"""SQL for a record's first label."""
SELECT = (
    f"select {', '.join('records.' + name for name in COLUMNS)}, detail "
    "from records join details using (record_id)"
)


def encode_detail(record: Record) -> str:
    """Write a record's detail as JSON.

    With `vars`, since `dataclasses.asdict` would copy every id and take ten times as long. The text is what
    `json.dumps` writes in four times the time.
    """
    return to_json(
        {
            "prompt_ids": record.prompt_ids,
            "max_tokens": record.max_tokens,
            "temperature": record.temperature,
            "components": record.components,
            "context": [vars(turn) for turn in record.context],
            "candidates": [vars(candidate) for candidate in record.candidates],
            "view_prompts": record.view_prompts,
            "taught_shares": record.taught_shares,
        }
    ).decode()


def decode_row(row: Sequence[Any]) -> Record:
    """Convert a row of SELECT to a record.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: the row is no record: the file is damaged.
    """
    values = dict(zip(COLUMNS, row[:-1], strict=True)) | json.loads(row[-1])
    for name in ("labels", "gold", "target"):
        values[name] = tuple(values[name].split(", ")) if values[name] else ()
    return _RECORD.validate_python(values)


_RECORD = TypeAdapter(Record)
"""Checks every field of a record, nested ones included: a detail is JSON that anyone may have edited."""
