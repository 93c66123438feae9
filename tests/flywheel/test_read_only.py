"""Test that reading a run writes nothing, wherever it lies, and tells damaged from unreadable."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands.main import app, main
from selfemo.common.errors import UserError
from selfemo.flywheel.store import Filter, FlywheelStore
from tests.flywheel.test_store import records
from tests.helpers.made_run import make_run
from tests.helpers.scripted import LABELS
from tests.helpers.unwritable import as_reader

READS = [
    ["flywheel", "list", "{run}"],
    ["flywheel", "show", "{run}", "1"],
    ["flywheel", "stats", "{run}"],
    ["flywheel", "export", "{run}", "{out}/kept.jsonl"],
    ["report", "{run}", "--output", "{out}/report.html"],
]


def ids(path: Path) -> list[int]:
    with closing(FlywheelStore(path)) as store:
        return [record.record_id for record in store.find(Filter())]


def write_store(path: Path, count: int) -> FlywheelStore:
    store = FlywheelStore(path, writable=True, labels=LABELS)
    store.append(records(count))
    return store


def told(arguments: list[str]) -> str:
    """Run a command in this process; returns what went wrong with it, or nothing."""
    ended = CliRunner().invoke(app, arguments)
    return "" if ended.exit_code == 0 else f"{ended.exit_code} {ended.exception!r}"


@pytest.mark.long
def test_every_reading_command_leaves_a_finished_run_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for attempt, is_reader in enumerate((False, True)):
        out = tmp_path / f"out{attempt}"
        out.mkdir()
        out.chmod(0o777)
        for command in READS:
            arguments = [part.format(run=run, out=out) for part in command]
            problem = as_reader(run, told, arguments) if is_reader else told(arguments)
            assert problem == "", arguments
        assert (out / "report.html").stat().st_size > 10_000
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def left_by_a_kill(root: Path) -> None:
    """Journal and index lie beside the file."""


def copied_without_index(root: Path) -> None:
    (root / "f.sqlite-shm").unlink()


@pytest.mark.parametrize("state", [left_by_a_kill, copied_without_index])
@pytest.mark.parametrize("is_reader", [False, True])
def test_a_journal_is_read_where_nothing_can_be_written(
    tmp_path: Path, state: Callable[[Path], None], is_reader: bool
) -> None:
    (tmp_path / "live").mkdir()
    writer = write_store(tmp_path / "live" / "f.sqlite", 6)
    shutil.copytree(tmp_path / "live", tmp_path / "killed")
    writer.close()
    state(tmp_path / "killed")
    names = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert "f.sqlite-wal" in names
    path = tmp_path / "killed" / "f.sqlite"
    found = as_reader(path.parent, ids, path) if is_reader else ids(path)
    assert found == ids(tmp_path / "live" / "f.sqlite") != []
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names


def test_a_live_writers_records_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    writer = write_store(path, 2)
    with closing(FlywheelStore(path)) as reader:
        writer.append(records(2, first=3))
        assert reader.last_id() == writer.last_id()
    writer.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f.sqlite", "f.sqlite.lock"]


def test_damaged_and_unreadable_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    write_store(path, 2).close()
    sound = path.read_bytes()
    path.write_bytes(b"no database" * 400)
    with pytest.raises(UserError, match="not a flywheel"):
        FlywheelStore(path)
    path.write_bytes(sound)
    assert "cannot be read (Permission denied): make it readable" in as_reader(
        tmp_path, ids, path, barred=path
    )


def report_on(run: Path) -> None:
    sys.argv = ["selfemo", "report", str(run)]
    main()


def test_a_directory_that_may_not_be_entered_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    assert as_reader(tmp_path, report_on, tmp_path / "closed", barred=tmp_path / "closed") == "SystemExit: 2"
