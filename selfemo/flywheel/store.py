"""Stores the flywheel's records in an append-only SQLite file with one writer.

SQLite is in the standard library, survives a crash at any point (WAL journal; a batch of records is one
transaction, so it is there whole or not at all), and many tools read it:
`pandas.read_sql("select * from records", sqlite3.connect(path))`.

flywheel/schema.py defines the tables, whose triggers refuse to change or delete a record. A record's place in
the run is unique, so a batch offered again adds nothing. Only `rewind` removes records: those of a part of a
run that a resume goes through again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from selfemo.common.errors import UserError
from selfemo.common.printable import quote
from selfemo.flywheel.connection import connect, lock_writer
from selfemo.flywheel.record import Record
from selfemo.flywheel.rule import READINGS
from selfemo.flywheel.schema import (
    COLUMN_KINDS,
    COLUMNS,
    PRIMARY_LABEL,
    SELECT,
    decode_row,
    encode_detail,
)

SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""Errors of a damaged file; the second one if SQLite's message quotes bytes that are no text."""
MAX_ID = 2**63 - 1
NO_READING = f"kept = 1 and reason not in ({', '.join('?' * len(READINGS))})"


@dataclass(frozen=True)
class Total:
    """Number of records that share a role, primary label and outcome."""

    role: str
    label: str
    kept: bool
    reason: str
    count: int


@dataclass(frozen=True)
class Filter:
    """Selects the records to list; None leaves a field open."""

    kept: bool | None = None
    role: str | None = None
    label: str | None = None
    reason: str | None = None
    after: int = 0
    """Only records with a greater id."""


class FlywheelStore:
    """An open store. `writable=True` creates it if it does not exist, and locks out a second writer.

    Reading writes nothing, and leaves no file of SQLite's behind.
    """

    def __init__(self, path: Path, *, writable: bool = False, labels: Sequence[str] = ()) -> None:
        """Open the store.

        Args:
            labels: the closed label set, written into a store that is created here.

        Raises:
            UserError: no store there (reading), another process writes it, or the file is not a flywheel of
                this version.
        """
        self.path = path
        self._lock: IO[bytes] | None = lock_writer(path) if writable else None
        if not writable and not path.is_file():
            raise UserError(
                f"{path}: no flywheel there; expected a flywheel file of a run's output directory"
            )
        try:
            self._connection = connect(path, writable, labels)
        except (UserError, OSError, *SQLITE_ERRORS) as error:
            self._unlock()
            if isinstance(error, UserError):
                raise
            if isinstance(error, OSError):
                raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable") from None
            raise UserError(f"{path}: not a flywheel ({error}); expected a flywheel file of a run") from error

    def close(self) -> None:
        """Close the file and release the lock. A second call does nothing."""
        self._connection.close()
        self._unlock()

    def append(self, records: Sequence[Record]) -> int:
        """Add records in one transaction; returns the number of records added.

        A record whose place in the run is taken is skipped. The cost does not depend on the number of records
        in the store.

        Raises:
            UserError: the file cannot be written; none of the records is in it.
        """
        added = 0
        with self._transaction():
            for record in records:
                added += self._insert(record)
        return added

    def rewind(self, last_id: int) -> None:
        """Remove every record after `last_id`, in one transaction.

        The store is then as it was when that record was its last.

        Raises:
            UserError: the file cannot be written; it is unchanged.
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
                f"insert into totals select role, {PRIMARY_LABEL}, kept, reason, count(*) from records "
                "group by 1, 2, 3, 4"
            )
            for _, sql in stays:
                self._connection.execute(sql)

    def totals(self) -> list[Total]:
        """Return the running counts; reads no record."""
        rows = self._rows(
            "select role, label, kept, reason, count from totals order by role, label, kept, reason",
            (str, str, int, str, int),
        )
        return [Total(role, label, bool(kept), reason, count) for role, label, kept, reason, count in rows]

    def outcomes(self, iteration: int) -> dict[tuple[bool, str], int]:
        """Count an iteration's records by (kept, reason)."""
        query = "select kept, reason, count(*) from records where iteration = ? group by kept, reason"
        return {
            (bool(kept), reason): count
            for kept, reason, count in self._rows(query, (int, str, int), iteration)
        }

    def lineage(self) -> list[tuple[int, int | None, bool, str]]:
        """List (record, record it descends from, kept, source) of every record, in order; reads no detail."""
        rows = self._rows(
            "select record_id, parent, kept, source from records order by record_id",
            (int, int | None, int, str),
        )
        return [(record_id, parent, bool(kept), source) for record_id, parent, kept, source in rows]

    def labels(self) -> list[str]:
        """Return the closed label set, in alphabetical order."""
        return [label for (label,) in self._rows("select label from label_set order by label", (str,))]

    def last_id(self) -> int:
        """Return the greatest record id; 0 in an empty store."""
        return int(next(self._rows("select coalesce(max(record_id), 0) from records", (int,)))[0])

    def iterations(self) -> set[int]:
        """Return the iterations that are recorded. Each is whole, since it was added in one transaction."""
        return {iteration for (iteration,) in self._rows("select distinct iteration from records", (int,))}

    def read(self, record_id: int) -> Record:
        """Read one record.

        Raises:
            UserError: no record has that id.
        """
        rows = (
            self._rows(f"{SELECT} where records.record_id = ?", COLUMN_KINDS, record_id)
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
        """Yield records in order of id, at most `limit` of them (-1: all)."""
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
        query = f"{SELECT} where {' and '.join(clauses)} order by records.record_id limit ?"
        for row in self._rows(query, COLUMN_KINDS, *values, limit):
            yield self._decode(row)

    def kept_texts(self) -> Iterator[tuple[str, str]]:
        """Yield (role, text) of every kept record but readings, in order."""
        query = f"select role, text from records where {NO_READING} order by record_id"
        yield from self._rows(query, (str, str), *READINGS)

    def newest_kept(self, role: str, count: int) -> list[Record]:
        """Return the newest kept records of a role but readings, oldest first."""
        query = f"{SELECT} where {NO_READING} and role = ? order by records.record_id desc limit ?"
        rows = self._rows(query, COLUMN_KINDS, *READINGS, role, count)
        return [self._decode(row) for row in rows][::-1]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit the block's statements, or none of them if it raises."""
        try:
            with self._connection:
                yield
        except sqlite3.Error as error:
            remedy = "free space or make it writable, then run again"
            raise UserError(
                f"{self.path}: cannot be written ({error}); the file is as it was: {remedy}"
            ) from error

    def _rows(self, query: str, kinds: Sequence[Any], *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query, and check that the columns have these types.

        SQLite itself keeps any value in any column.
        """
        try:
            for row in self._connection.execute(query, values):
                if not all(map(isinstance, row, kinds)):
                    raise self._damage(f"a column holds {quote(row)}")
                yield row
        except SQLITE_ERRORS as error:
            raise self._damage(str(error)) from error

    def _decode(self, row: Sequence[Any]) -> Record:
        try:
            return decode_row(row)
        # JSON's errors and pydantic's are ValueErrors
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._damage(f"record {row[0]}: {str(error)[:200]}") from error

    def _damage(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: damaged ({what}); expected a flywheel file of a run: restore it from a copy"
        )

    def _insert(self, record: Record) -> int:
        values = {name: getattr(record, name) for name in COLUMNS} | {"kept": int(record.kept)}
        values |= {name: ", ".join(values[name]) for name in ("labels", "gold", "target")}
        marks = ", ".join(f":{name}" for name in COLUMNS)
        cursor = self._connection.execute(
            f"insert or ignore into records ({', '.join(COLUMNS)}) values ({marks})", values
        )
        if cursor.rowcount == 0:
            return 0
        self._connection.execute(
            "insert into details values (?, ?)", (record.record_id, encode_detail(record))
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
