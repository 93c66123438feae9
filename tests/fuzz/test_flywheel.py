"""Fuzz a flywheel's bytes and the values in its tables: the result is sound records or one line."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from selfemo.commands import flywheel as commands
from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Turn
from selfemo.flywheel.export import export_jsonl
from selfemo.flywheel.record import Candidate, Record
from selfemo.flywheel.schema import COLUMNS
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.process.plain_console import plain_console
from selfemo.report.flywheel import generations, longest_chains
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz

TOKENS = [
    b"SQLite format 3\x00",
    b"\x0d",
    b"\x05",
    b"\x02",
    b"\x00\x00\x00\x01",
    b"create view records as select 1;",
    b"UPDATE",
    b"joy",
]
ODD: list[Any] = [
    None,
    0,
    -1,
    2**62,
    1e308,
    "",
    "joy",
    "\x1b]0;x\x07[red]",
    "\ud7ff\u202e",
    b"\xff\x00",
    "a" * 1000,
    "[]",
    "{}",
    "null",
]
DETAIL_TOKENS = [
    b'"context":',
    b'"candidates":',
    b'"seed":',
    b'"votes":',
    b'[["joy",1]]',
    b'"text":',
    b"[]",
    b"{}",
    b"1e999",
    b'"\\ud800"',
]


def record(number: int) -> Record:
    """Make a small sound record."""
    candidate = Candidate(7, "Oh good.", (5, 6), True, "joy", (), (1.0, 0.5), 1.0)
    place = {
        "record_id": number,
        "iteration": number,
        "episode": 0,
        "turn": 0,
        "role": "recognizer",
        "source": "meld/train/0",
        "parent": None,
    }
    turn = {
        "weight_version": 1,
        "speaker": "Ana",
        "text": f"Well {number}.",
        "labels": ("joy",),
        "gold": ("joy",),
        "target": (),
    }
    outcome = {
        "score": 1.0,
        "agreement": 0.9,
        "kept": True,
        "reason": "annotated",
        "max_tokens": 8,
        "temperature": 1.0,
    }
    context = (Turn("Ben", "Hi.", ("joy",), (("joy", 2),)), Turn("Ana", f"Well {number}."))
    lists = {
        "prompt_ids": (1, 2),
        "context": context,
        "components": ("alignment", "format"),
        "candidates": (candidate,),
    }
    return Record(**(place | turn | outcome | lists))  # type: ignore[arg-type]


def sound_store(path: Path) -> bytes:
    """Make the bytes of a store of three records."""
    with closing(FlywheelStore(path, writable=True, labels=("joy", "sadness"))) as store:
        store.append([record(number) for number in (1, 2, 3)])
        store._connection.execute("pragma journal_mode = delete")  # keep everything in one file
    return path.read_bytes()


def read_all(path: Path, shown: bool) -> None:
    """Call everything that commands and a run ask of a store.

    If `shown`, also print and export, which takes most of the time.
    """
    with closing(FlywheelStore(path)) as store:
        (
            store.labels(),
            store.last_id(),
            store.iterations(),
            list(store.kept_texts()),
            store.newest_kept("recognizer", 2),
        )
        longest_chains(links := store.lineage(), generations({link[0]: link[1] for link in links}))
        totals, records = store.totals(), list(store.find(Filter(label="joy"), 10))
        if shown:
            output = io.StringIO()
            console = plain_console(file=output, force_terminal=True, color_system=None, width=400)
            for part in (
                commands.summary_table(totals),
                commands.records_table(records),
                *map(commands.candidates_table, records),
            ):
                console.print(part)
            assert "\x1b" not in output.getvalue()
            assert all(line.isprintable() for found in records for line in commands.provenance_lines(found))
            with contextlib.suppress(UserError):  # nothing was kept, or an earlier export is there
                export_jsonl(store, path.with_name("export.jsonl"))


@fuzz
def test_flywheel_bytes(seed: int, tally: Tally, scratch: Path) -> None:
    sound, path = sound_store(scratch / "sound.sqlite"), scratch / "flywheel.sqlite"
    for rng in tally.batch(seed):
        content = damaged(rng, [sound], TOKENS)
        path.write_bytes(content)
        tally.try_input(functools.partial(read_all, path, rng.random() < 0.02), content)


@fuzz
def test_flywheel_values(seed: int, tally: Tally, scratch: Path) -> None:
    sound, path = sound_store(scratch / "sound.sqlite"), scratch / "flywheel.sqlite"
    detail = (
        FlywheelStore(scratch / "sound.sqlite")
        ._connection.execute("select detail from details")
        .fetchone()[0]
        .encode()
    )
    for rng in tally.batch(seed):
        path.write_bytes(sound)
        told = _tamper(path, rng, detail)
        tally.try_input(functools.partial(read_all, path, rng.random() < 0.02), told)


def _tamper(path: Path, rng: random.Random, detail: bytes) -> object:
    """Change one value and leave the schema as it was."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("pragma synchronous = off; pragma journal_mode = memory")
        triggers = connection.execute("select name, sql from sqlite_master where type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"drop trigger {name}")
        if rng.random() < 0.5:
            value: Any = damaged(rng, [detail, json.dumps([1]).encode()], DETAIL_TOKENS).decode(
                "utf-8", "replace"
            )
            column = "detail"
            connection.execute("update or ignore details set detail = ? where record_id = 2", (value,))
        else:
            table, column = rng.choice(
                [("records", c) for c in COLUMNS[1:]]
                + [("totals", "label"), ("totals", "count"), ("label_set", "label")]
            )
            value = rng.choice(ODD)
            try:
                connection.execute(f"update or ignore {table} set {column} = ?", (value,))
            except sqlite3.Error:  # a constraint forbids the value there
                value = "unchanged"
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()
    return column, value
