"""The flywheel's store: an append-only SQLite file with one writer.

SQLite because it is in the standard library, survives a crash at any point (WAL journal; a batch of records is one transaction, so it is
there whole or not at all), and is read by everything: `pandas.read_sql("select * from records", sqlite3.connect(path))`.

    records   one row per record, small columns only
    details   what is read one record at a time (context, prompt, candidates), as JSON
    label_set the closed label set, so that an export is a corpus of its own
    totals    running counts by role, label, reason and kept, kept up in the same transaction: a summary reads some dozen rows
              however many records there are

Triggers refuse to change or delete a record. A record's place in the run is unique, so a batch offered again adds nothing. Only `rewind`
takes records back: those of a part of a run that a resume goes through again.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import sqlite3
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from selfemo.common.errors import UserError
from selfemo.common.printable import quote
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
_COLUMNS = _KEYS + _OUTCOME
_COLUMN_KINDS = (
    *(int, int, int, int, str, str, int | None, int, str, str),
    *(str, str, str, int | float, int | float, int, str),
    str,
)
"""What a row of _SELECT holds: the columns, then the detail."""
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""The second where SQLite's message quotes bytes of a damaged file."""
MAX_ID = 2**63 - 1
MAX_VALUE_BYTES = 64 << 20
"""Largest value that is read from a store; a record has a few kilobytes."""
_SCHEMA = f"""
create table records (
    record_id integer primary key, iteration integer not null, episode integer not null, turn integer not null, role text not null,
    source text not null, parent integer, weight_version integer not null, speaker text not null, text text not null,
    labels text not null, gold text not null, target text not null, score real not null, agreement real not null,
    kept integer not null, reason text not null,
    unique (iteration, episode, turn, role)
);
create table details (record_id integer primary key references records, detail text not null);
create table label_set (label text primary key);
create table totals (
    role text not null, label text not null, kept integer not null, reason text not null, count integer not null,
    primary key (role, label, kept, reason)
) without rowid;
create index kept_records on records (record_id) where kept = 1;
create trigger records_keep before update on records begin select raise(abort, 'the flywheel is append-only'); end;
create trigger records_stay before delete on records begin select raise(abort, 'the flywheel is append-only'); end;
create trigger details_keep before update on details begin select raise(abort, 'the flywheel is append-only'); end;
create trigger details_stay before delete on details begin select raise(abort, 'the flywheel is append-only'); end;
pragma user_version = {SCHEMA_VERSION};
"""


@dataclass(frozen=True)
class Total:
    """How many records share a role, primary label and outcome."""

    role: str
    label: str
    kept: bool
    reason: str
    count: int


@dataclass(frozen=True)
class Filter:
    """Which records to list; None leaves a field open."""

    kept: bool | None = None
    role: str | None = None
    label: str | None = None
    reason: str | None = None
    after: int = 0
    """Only records with a greater id."""


class FlywheelStore:
    """A store on disk: `writable=True` creates it where it does not exist and locks out a second writer."""

    def __init__(self, path: Path, *, writable: bool = False, labels: Sequence[str] = ()) -> None:
        """Open the store.

        Args:
            labels: the closed label set, written into a store that is created here.

        Raises:
            UserError: no store there (reading), another process writes it, or the file is not a flywheel of this version.
        """
        self.path = path
        self._lock: IO[bytes] | None = _lock(path) if writable else None
        if not writable and not path.is_file():
            raise UserError(
                f"{path}: no flywheel there; expected the flywheel.sqlite of a run's output directory"
            )
        try:
            self._connection = _connect(path, writable, labels)
        except (UserError, *SQLITE_ERRORS) as error:
            self._unlock()
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path}: not a flywheel ({error}); expected the flywheel.sqlite of a run"
            ) from error

    def close(self) -> None:
        """Close the file and let go of the lock. Closing twice does nothing."""
        self._connection.close()
        self._unlock()

    def append(self, records: Sequence[Record]) -> int:
        """Add records in one transaction; those whose place in the run is taken are passed over. Returns how many were added.

        The cost does not depend on how many records there are.

        Raises:
            UserError: the file cannot be written; none of the records is in it.
        """
        added = 0
        with self._transaction():
            for record in records:
                added += self._insert(record)
        return added

    def rewind(self, last_id: int) -> None:
        """Forget every record after `last_id`, in one transaction: the store is what it was when that record was its last.

        Raises:
            UserError: the file cannot be written; it holds what it held.
        """
        with self._transaction():
            self._connection.execute("begin immediate")
            stays = self._connection.execute(
                "select name, sql from sqlite_master where type = 'trigger' and name like '%_stay'"
            ).fetchall()
            for name, _ in stays:
                self._connection.execute(f"drop trigger {name}")
            self._connection.execute("delete from details where record_id > ?", (last_id,))
            self._connection.execute("delete from records where record_id > ?", (last_id,))
            self._connection.execute("delete from totals")
            self._connection.execute(
                f"insert into totals select role, {_PRIMARY}, kept, reason, count(*) from records group by 1, 2, 3, 4"
            )
            for _, sql in stays:
                self._connection.execute(sql)

    def totals(self) -> list[Total]:
        """Running counts; reads no record."""
        rows = self._rows(
            "select role, label, kept, reason, count from totals order by role, label, kept, reason",
            (str, str, int, str, int),
        )
        return [Total(role, label, bool(kept), reason, count) for role, label, kept, reason, count in rows]

    def outcomes(self, iteration: int) -> dict[tuple[bool, str], int]:
        """How many of an iteration's records share (kept, reason)."""
        query = "select kept, reason, count(*) from records where iteration = ? group by kept, reason"
        return {
            (bool(kept), reason): count
            for kept, reason, count in self._rows(query, (int, str, int), iteration)
        }

    def lineage(self) -> list[tuple[int, int | None, bool, str]]:
        """(record, the record it descends from, kept, source) of every record, in order; reads no detail."""
        rows = self._rows(
            "select record_id, parent, kept, source from records order by record_id",
            (int, int | None, int, str),
        )
        return [(record_id, parent, bool(kept), source) for record_id, parent, kept, source in rows]

    def labels(self) -> list[str]:
        """The closed label set, alphabetical."""
        return [label for (label,) in self._rows("select label from label_set order by label", (str,))]

    def last_id(self) -> int:
        """The greatest record id; 0 in an empty store."""
        return int(next(self._rows("select coalesce(max(record_id), 0) from records", (int,)))[0])

    def iterations(self) -> set[int]:
        """Iterations that are recorded; each is whole, since it was added in one transaction."""
        return {iteration for (iteration,) in self._rows("select distinct iteration from records", (int,))}

    def read(self, record_id: int) -> Record:
        """One record.

        Raises:
            UserError: no record has that id.
        """
        rows = (
            self._rows(f"{_SELECT} where records.record_id = ?", _COLUMN_KINDS, record_id)
            if 0 < record_id <= MAX_ID
            else iter(())
        )
        row = next(rows, None)
        if row is None:
            raise UserError(
                f"{self.path}: no record {record_id}; expected 1 to {self.last_id()} (selfemo flywheel list)"
            )
        return self._decode(row)

    def find(self, wanted: Filter, limit: int = -1) -> Iterator[Record]:
        """Records in order of id, at most `limit` of them (-1: all)."""
        clauses, values = ["records.record_id > ?"], [wanted.after]
        parts: tuple[tuple[str, Any], ...] = (
            ("kept = ?", None if wanted.kept is None else int(wanted.kept)),
            ("role = ?", wanted.role),
            ("reason = ?", wanted.reason),
            ("instr(labels || ',', ? || ',') = 1", wanted.label),
        )
        for clause, value in parts:
            if value is not None:
                clauses.append(clause)
                values.append(value)
        query = f"{_SELECT} where {' and '.join(clauses)} order by records.record_id limit ?"
        for row in self._rows(query, _COLUMN_KINDS, *values, limit):
            yield self._decode(row)

    def kept_texts(self) -> Iterator[tuple[str, str]]:
        """(role, text) of every kept record, in order."""
        yield from self._rows("select role, text from records where kept = 1 order by record_id", (str, str))

    def newest_kept(self, role: str, count: int) -> list[Record]:
        """The newest kept records of a role, oldest first."""
        query = f"{_SELECT} where kept = 1 and role = ? order by records.record_id desc limit ?"
        return [self._decode(row) for row in self._rows(query, _COLUMN_KINDS, role, count)][::-1]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing."""
        try:
            with self._connection:
                yield
        except sqlite3.Error as error:
            remedy = "free space or make it writable, then run again"
            raise UserError(
                f"{self.path}: cannot be written ({error}); the file is as it was: {remedy}"
            ) from error

    def _rows(self, query: str, kinds: Sequence[Any], *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query whose columns are of these kinds: SQLite itself keeps any value in any column."""
        try:
            for row in self._connection.execute(query, values):
                if not all(map(isinstance, row, kinds)):
                    raise self._damage(f"a column holds {quote(row)}")
                yield row
        except SQLITE_ERRORS as error:
            raise self._damage(str(error)) from error

    def _decode(self, row: Sequence[Any]) -> Record:
        try:
            return _decode(row)
        except (
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
        ) as error:  # JSON's errors and pydantic's are ValueErrors
            raise self._damage(f"record {row[0]}: {str(error)[:200]}") from error

    def _damage(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: damaged ({what}); expected the flywheel.sqlite of a run: restore it from a copy"
        )

    def _insert(self, record: Record) -> int:
        values = {name: getattr(record, name) for name in _COLUMNS} | {"kept": int(record.kept)}
        values |= {name: ", ".join(values[name]) for name in ("labels", "gold", "target")}
        marks = ", ".join(f":{name}" for name in _COLUMNS)
        cursor = self._connection.execute(
            f"insert or ignore into records ({', '.join(_COLUMNS)}) values ({marks})", values
        )
        if cursor.rowcount == 0:
            return 0
        self._connection.execute(
            "insert into details values (?, ?)", (record.record_id, _encode_detail(record))
        )
        self._connection.execute(
            "insert into totals values (?, ?, ?, ?, 1) on conflict do update set count = count + 1",
            (record.role, record.labels[0] if record.labels else "", int(record.kept), record.reason),
        )
        return 1

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


_PRIMARY = "case instr(labels, ', ') when 0 then labels else substr(labels, 1, instr(labels, ', ') - 1) end"
"""A record's first label, in SQL."""
_SELECT = f"select {', '.join('records.' + name for name in _COLUMNS)}, detail from records join details using (record_id)"


def _lock(path: Path) -> IO[bytes]:
    """An open file that holds the writer's lock until it is closed, forgotten, or the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.fdopen(os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    _close_in_children(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError(
            f"{path}: another process is writing it; expected one writer; wait for it, or choose another output_dir"
        ) from None
    return handle


def _close_in_children(handle: IO[bytes]) -> None:
    """A process forked to write a checkpoint must not hold the lock of a run that was killed meanwhile."""
    held = weakref.ref(handle)

    def close() -> None:
        inherited = held()
        if inherited is not None and not inherited.closed:
            os.close(inherited.fileno())

    os.register_at_fork(after_in_child=close)


def _connect(path: Path, writable: bool, labels: Sequence[str]) -> sqlite3.Connection:
    if writable and not path.exists():
        _create(path, labels)
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={'rw' if writable else 'ro'}", uri=True)
    version = connection.execute("pragma user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        connection.close()
        raise UserError(
            f"{path}: flywheel version {version}, expected {SCHEMA_VERSION}; it was written by another version of selfemo"
        )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    if (
        _schema(connection) != _expected_schema()
    ):  # a view or a trigger in the place of a table would run what its author likes
        connection.close()
        raise UserError(f"{path}: not the tables of a flywheel; expected the flywheel.sqlite of a run")
    if writable:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
    return connection


def _schema(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    query = "select type, name, sql from sqlite_master where sql is not null order by type, name"
    return connection.execute(query).fetchall()


@functools.cache
def _expected_schema() -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _schema(connection)


def _create(path: Path, labels: Sequence[str]) -> None:
    """Make an empty store under a temporary name first, so that a store that exists is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(_SCHEMA)
        connection.executemany("insert into label_set values (?)", [(label,) for label in labels])
        connection.commit()
    os.replace(temporary, path)


def _encode_detail(record: Record) -> str:
    """`vars` and not `dataclasses.asdict`, which would copy every id and take ten times as long."""
    return json.dumps(
        {
            "prompt_ids": record.prompt_ids,
            "max_tokens": record.max_tokens,
            "temperature": record.temperature,
            "components": record.components,
            "context": [vars(turn) for turn in record.context],
            "candidates": [vars(candidate) for candidate in record.candidates],
            "view_prompts": record.view_prompts,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _decode(row: Sequence[Any]) -> Record:
    values = dict(zip(_COLUMNS, row[:-1], strict=True)) | json.loads(row[-1])
    for name in ("labels", "gold", "target"):
        values[name] = tuple(values[name].split(", ")) if values[name] else ()
    return _RECORD.validate_python(values)


_RECORD = TypeAdapter(Record)
"""Checks every field of a record, nested ones included: a detail is JSON that anyone may have edited."""
