"""Opens the flywheel's SQLite file: lock against a second writer, creation, and a check of its tables."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO

from selfemo.common.errors import UserError
from selfemo.common.files import close_in_children
from selfemo.flywheel.schema import SCHEMA, SCHEMA_VERSION

MAX_VALUE_BYTES = 64 << 20
"""Largest value that is read from a store, in bytes; a record has a few kilobytes."""


def lock_writer(path: Path) -> IO[bytes]:
    """Open the file that holds the writer's lock until it is closed, forgotten, or the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.fdopen(os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    close_in_children(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError(
            f"{path}: another process is writing it; expected one writer; "
            "wait for it, or choose another output_dir"
        ) from None
    return handle


def connect(path: Path, writable: bool, labels: Sequence[str]) -> sqlite3.Connection:
    """Connect to a store; with `writable`, one that does not exist is created with these labels.

    Raises:
        UserError: it is of another version, or its tables are not a flywheel's.
        sqlite3.Error, UnicodeDecodeError: it is not a database, or damaged.
        OSError: it cannot be read.
    """
    if writable and not path.exists():
        _create(path, labels)
    connection = _open(path, "mode=rw") if writable else connect_unchanged(path)
    version = connection.execute("pragma user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        connection.close()
        raise UserError(
            f"{path}: flywheel version {version}, expected {SCHEMA_VERSION}; "
            "it was written by another version of selfemo"
        )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    # A view or a trigger in the place of a table would run statements that its author chose.
    if _schema(connection) != _expected_schema():
        connection.close()
        raise UserError(f"{path}: not the tables of a flywheel; expected a flywheel file of a run")
    if writable:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        _read(connection)  # makes the journal: readers know a live writer by it
    return connection


def connect_unchanged(path: Path) -> sqlite3.Connection:
    """Connect to a store for reading, and change nothing: no file beside it appears, on any file system.

    In WAL mode SQLite makes two files (-wal, -shm) even for a reader. Both are there while a writer lives,
    and are shared with it then. Otherwise the file stands still and is read as immutable; a journal without
    an index that this process may use (a killed writer, a copy) is applied to a temporary copy.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb"):  # SQLite has one message for every reason
        pass
    journal, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if not journal.exists():
        return _open(path, "mode=ro&immutable=1")
    if index.exists():
        with contextlib.suppress(sqlite3.OperationalError):  # a place where nothing can be written
            return _read(_open(path, "mode=ro"))
    with tempfile.TemporaryDirectory(prefix="selfemo-flywheel-") as scratch:
        copy = Path(scratch) / path.name
        for source, suffix in ((path, ""), (journal, "-wal")):
            shutil.copyfile(source, f"{copy}{suffix}")
        with closing(_open(copy, "mode=rw")) as connection:
            connection.execute("pragma journal_mode = delete")  # applies the journal
        return _read(_open(copy, "mode=ro&immutable=1"))


def _open(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True)


def _read(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Have SQLite open its files, which may lose their names then."""
    try:
        connection.execute("pragma schema_version")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _schema(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    query = "select type, name, sql from sqlite_master where sql is not null order by type, name"
    return connection.execute(query).fetchall()


@functools.cache
def _expected_schema() -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        return _schema(connection)


def _create(path: Path, labels: Sequence[str]) -> None:
    """Make an empty store under a temporary name first, so that a store that exists is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(SCHEMA)
        connection.executemany("insert into label_set values (?)", [(label,) for label in labels])
        connection.commit()
    os.replace(temporary, path)
