"""Test the store.

Records read back equal, never change or vanish, have one writer, and survive a crash. An operation
costs as little in a large store as in a small one.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.schema import RewardConfig
from selfemo.flywheel.flywheel import make_record
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.rewards.scoring import score_group
from tests.helpers.groups import SCORE, recognizer_group, responder_group
from tests.helpers.scripted import LABELS, turns

ONES = dict.fromkeys(LABELS, 1.0)
ROOT = Path(__file__).resolve().parents[2]


def records(count: int, first: int = 1) -> list[Record]:
    context = turns("Ann[joy]: hey, [you]", "Bo[anger]: we won “it”, all\u00e9")
    groups = [
        recognizer_group(["joy, anger", "anger", ""], ("joy",), context=context),
        responder_group([("fine so", "joy")], ("joy",)),
    ]
    made = []
    for i in range(first, first + count):
        record = make_record(score_group(groups[i % 2], RewardConfig(), SCORE, ONES), i, 7, 0.5)
        made.append(
            replace(
                record,
                iteration=i,
                kept=i % 3 == 0,
                reason="annotated" if i % 3 == 0 else "low score",
                parent=i - 1 or None,
            )
        )
    return made


def test_records_come_back_as_they_went_in(tmp_path: Path) -> None:
    written = records(6)
    store = FlywheelStore(tmp_path / "f.sqlite", writable=True, labels=LABELS)
    assert store.append(written) == 6
    store.close()
    store = FlywheelStore(tmp_path / "f.sqlite")
    assert list(store.find(Filter())) == written
    assert store.read(3) == written[2]
    assert store.last_id() == 6
    assert store.labels() == list(LABELS)
    assert store.iterations() == set(range(1, 7))
    assert [r.record_id for r in store.find(Filter(kept=True))] == [3, 6]
    assert [r.record_id for r in store.find(Filter(role="responder", after=1), limit=2)] == [3, 5]
    assert [r.record_id for r in store.find(Filter(label="joy", reason="low score"))] == [1, 2, 4, 5]
    for other in ("jo", "%", "j_y", "JOY"):
        assert list(store.find(Filter(label=other))) == [], "a label is compared, not a pattern"
    with pytest.raises(UserError, match=r"no record 9; expected 1 to 6"):
        store.read(9)


def test_totals_count_what_is_there_and_records_are_a_plain_table(tmp_path: Path) -> None:
    store = FlywheelStore(tmp_path / "f.sqlite", writable=True)
    store.append(records(9))
    assert sum(t.count for t in store.totals()) == 9
    assert sum(t.count for t in store.totals() if t.kept) == 3
    counted = sqlite3.connect(tmp_path / "f.sqlite").execute(
        "select kept, count(*) from records group by kept"
    )
    assert dict(counted) == {0: 6, 1: 3}


def test_a_place_in_the_run_is_taken_once(tmp_path: Path) -> None:
    store = FlywheelStore(tmp_path / "f.sqlite", writable=True)
    store.append(records(4))
    assert store.append([replace(r, record_id=r.record_id + 4) for r in records(4)]) == 0
    assert sum(t.count for t in store.totals()) == 4


@pytest.mark.parametrize(
    "statement",
    [
        "update records set kept = 1",
        "delete from records",
        "update details set detail = ''",
        "delete from details",
    ],
)
def test_records_can_be_neither_changed_nor_deleted(tmp_path: Path, statement: str) -> None:
    FlywheelStore(tmp_path / "f.sqlite", writable=True).append(records(2))
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sqlite3.connect(tmp_path / "f.sqlite").execute(statement)


def test_one_writer_and_any_reader(tmp_path: Path) -> None:
    first = FlywheelStore(tmp_path / "f.sqlite", writable=True)
    with pytest.raises(UserError, match="another process is writing it"):
        FlywheelStore(tmp_path / "f.sqlite", writable=True)
    reader = FlywheelStore(tmp_path / "f.sqlite")
    first.append(records(2))
    assert reader.last_id() == 2
    with pytest.raises(UserError, match=r"cannot be written .*readonly"):
        reader.append(records(2, first=5))
    first.close()
    FlywheelStore(tmp_path / "f.sqlite", writable=True).close()


def test_what_is_no_flywheel_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.sqlite: no flywheel there"):
        FlywheelStore(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database at all, though long enough to be read as one" * 20)
    with pytest.raises(UserError, match="not a flywheel"):
        FlywheelStore(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "other.sqlite").execute("create table x (y)").connection.commit()
    with pytest.raises(UserError, match="version 0, expected 1"):
        FlywheelStore(tmp_path / "other.sqlite")


WRITER = """
import sys
from collections.abc import Callable
from pathlib import Path
from tests.flywheel.test_store import records
from selfemo.flywheel.store import FlywheelStore
store = FlywheelStore(Path(sys.argv[1]), writable=True)
print("ready", flush=True)
for start in range(1, 10**6, 5):
    store.append(records(5, first=start))
    print(start, flush=True)
"""


def test_a_killed_writer_leaves_whole_batches_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        if line.strip().isdigit():
            acknowledged = int(line) + 4
        if acknowledged >= 40:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = FlywheelStore(path, writable=True)
    count = store.last_id()
    assert count >= acknowledged
    assert count % 5 == 0, "a batch is there whole or not at all"
    assert sum(t.count for t in store.totals()) == count == len(list(store.find(Filter())))
    assert sqlite3.connect(path).execute("pragma integrity_check").fetchone() == ("ok",)
    store.append(records(1, first=count + 1))


def steps_to(store: FlywheelStore, work: Callable[[], object]) -> int:
    """Count the instructions of SQLite's virtual machine that some work takes."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store._connection.set_progress_handler(count, 1)
    work()
    store._connection.set_progress_handler(None, 1)
    return steps


def test_neither_an_append_nor_a_summary_costs_more_in_a_larger_store(tmp_path: Path) -> None:
    """Compare instructions, not seconds: any scan of the records would cost one or more per record.

    Seconds are in docs/measurements.md.
    """
    store = FlywheelStore(tmp_path / "f.sqlite", writable=True)
    store.append(records(60))
    before = [
        steps_to(store, partial(store.append, records(60, first=61))),
        steps_to(store, store.totals),
        steps_to(store, store.last_id),
    ]
    store.append(records(3000, first=121))
    after = [
        steps_to(store, partial(store.append, records(60, first=3121))),
        steps_to(store, store.totals),
        steps_to(store, store.last_id),
    ]
    assert after == before
