"""Test a command that is added as docs/extending.md says: it runs, is listed, and refuses in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfemo.commands
from selfemo.commands import main as cli
from selfemo.corpora.registry import load_corpus
from tests.helpers.guide import example


@pytest.fixture(autouse=True)
def labels_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the page's module to the room of commands, and its lines to the command line."""
    (tmp_path / "labels.py").write_text(example("selfemo/commands/labels.py"))
    monkeypatch.setattr(selfemo.commands, "__path__", [*selfemo.commands.__path__, str(tmp_path)])
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    exec(compile(example("selfemo/commands/main.py"), "extending.md", "exec"), dict(vars(cli)))
    yield
    sys.modules.pop("selfemo.commands.labels")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["selfemo", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "labels", "everyday") == 0
    assert tuple(capsys.readouterr().out.split()) == load_corpus("everyday").labels


def test_help_lists_it_with_its_first_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "--help") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "labels " in line)
    assert "Print the closed label set of a corpus" in line


def test_wrong_input_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "labels", "everday") == 2
    told = capsys.readouterr().err
    assert told.startswith("selfemo: ")
    assert "did you mean 'everyday'?" in told
    assert told.count("\n") == 1
