"""Test that a rewound store equals the store of that moment, loses no record silently, and takes
the same records again.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config.schema import RewardConfig
from selfemo.flywheel.flywheel import make_record
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import FlywheelStore
from selfemo.rewards.scoring import score_group
from tests.helpers.groups import SCORE, recognizer_group
from tests.helpers.scripted import LABELS

ROOT = Path(__file__).resolve().parents[2]


def records(count: int) -> list[Record]:
    scored = score_group(
        recognizer_group(["joy, anger", "anger", ""], ("joy",)),
        RewardConfig(),
        SCORE,
        dict.fromkeys(LABELS, 1.0),
    )
    made = [make_record(scored, i, 7, 0.5) for i in range(1, count + 1)]
    return [
        replace(r, iteration=r.record_id, kept=r.record_id % 2 == 0, reason=str(r.record_id % 3))
        for r in made
    ]


def content(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    tables = ("records", "details", "totals", "label_set", "sqlite_master order by name")
    found = [repr(connection.execute(f"select * from {table}").fetchall()) for table in tables]
    connection.close()
    return found


def test_a_rewound_store_is_the_store_of_that_moment(tmp_path):
    for name, count in (("short", 5), ("long", 9)):
        with_records = FlywheelStore(tmp_path / name, writable=True, labels=LABELS)
        with_records.append(records(count))
        with_records.close()
    store = FlywheelStore(tmp_path / "long", writable=True, labels=LABELS)
    store.rewind(5)
    store.close()
    assert content(tmp_path / "long") == content(tmp_path / "short")
    store = FlywheelStore(tmp_path / "long", writable=True, labels=LABELS)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        store._connection.execute("delete from records")
    assert store.append(records(9)) == 4
    store.rewind(0)
    assert (store.last_id(), store.totals()) == (0, [])
    store.close()


FULL = """
import resource, sys
from pathlib import Path
from selfemo.common.errors import UserError
from selfemo.flywheel.store import FlywheelStore
from tests.flywheel.test_rewind import records
store = FlywheelStore(Path(sys.argv[1]), writable=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # bounds the log of pages not yet in the file
try:
    WORK
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("work", ["store.append(records(200))", "store.rewind(3)"])
def test_a_full_disk_is_one_line_that_names_the_file_which_is_as_it_was(tmp_path, work):
    path = tmp_path / "f.sqlite"
    store = FlywheelStore(path, writable=True, labels=LABELS)
    store.append(records(100))
    store.close()
    before = content(path)
    command = [sys.executable, "-c", FULL.replace("WORK", work), str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.startswith(f"{path}: cannot be written (")
    assert "free space" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert content(path) == before


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    store = FlywheelStore(tmp_path / "f.sqlite", writable=True, labels=LABELS)
    end_reading, end_writing = os.pipe()
    begun_reading, begun_writing = os.pipe()
    child = os.fork()
    if child == 0:  # a checkpoint's writer, which outlives the run
        os.write(begun_writing, b"x")
        os.read(end_reading, 1)
        os._exit(0)
    os.read(begun_reading, 1)
    store.close()
    try:
        FlywheelStore(tmp_path / "f.sqlite", writable=True, labels=LABELS).close()
    finally:
        os.write(end_writing, b"x")
        os.waitpid(child, 0)
