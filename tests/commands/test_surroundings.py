"""Test what a shell, an operator or make may hand to a command: closed input, odd variables, odd paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfemo.commands.chat import _raw_lines
from selfemo.commands.main import main
from selfemo.commands.train import place_in_world
from selfemo.common.arguments import with_home
from selfemo.common.errors import UserError
from selfemo.inference.engines import StandaloneEngines
from selfemo.process.admission import Place

ROOT = Path(__file__).resolve().parents[2]
SELFEMO = Path(sys.executable).with_name("selfemo")


def one_line(command: str, **variables: str) -> str:
    """Run a shell command that must end with status 2 and one line; returns it."""
    (line,) = shell(command, 2, **variables).splitlines()
    return line


def shell(command: str, status: int, **variables: str) -> str:
    """Run a shell command that must end with this status; returns what it writes to standard error."""
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stderr


def test_chat_without_an_input_is_told_before_anything_is_loaded() -> None:
    assert "standard input is closed" in one_line(f"{SELFEMO} chat --model /nowhere <&-")


@pytest.mark.parametrize("option", [["--nodes", "2"], ["--processes-per-node", "1"], ["--gpu", "h100-80g"]])
def test_an_option_of_a_dry_run_starts_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    monkeypatch.setattr("selfemo.commands.train.run_training", lambda settings: print("trains"))
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")  # torchrun's
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["selfemo", "train", "corpus.name=everyday", *option])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert f"{option[0]} is read by a dry run alone" in said.err
    assert "trains" not in said.out
    monkeypatch.setattr(sys, "argv", ["selfemo", "train", "corpus.name=everyday"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, "trains\n")


def test_an_input_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("wb") as writing:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=writing))
        with pytest.raises(UserError, match="standard input cannot be read"):
            next(_raw_lines())


CHECK = f"{SELFEMO} corpus check everyday --limit 1"


def test_a_command_whose_streams_are_closed_does_its_work(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        shell(f"{CHECK} --json {report} {closed}", status=0)
        assert report.stat().st_size > 0
        report.unlink()


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """A library's print would be written into it."""
    written = tmp_path / "written"
    code = (
        "import os, sys; from selfemo.process.streams import standard_streams\n"
        f"with standard_streams(), open({str(written)!r}, 'w') as file:\n"
        "    print('lost'); os.write(1, b'lost'); os.write(2, b'lost'); file.write('kept')"
    )
    shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', status=0)
    assert written.read_text() == "kept"


def test_a_full_disk_behind_the_output_is_one_line_and_a_reader_that_has_gone_is_none() -> None:
    assert "standard output cannot be written (No space left on device)" in one_line(f"{CHECK} > /dev/full")
    assert shell(f"set -o pipefail; {CHECK} | true", status=1) == ""


def test_letters_that_a_locale_lacks_are_escaped() -> None:
    code = (
        "from selfemo.process.streams import standard_streams\n"
        "from selfemo.process.terminal import Terminal; from pathlib import Path\n"
        "with standard_streams():\n"
        "    print(chr(0x4f60)); told = Terminal(True, Path('run'), 0); told.drop_log()\n"
        "    told.say(chr(0x597d))"
    )
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    assert shell(f'{sys.executable} -c "{code}"', status=0, **ascii_alone) == "\\u597d\n"


def test_home_is_found_behind_an_option(tmp_path: Path) -> None:
    """A shell replaces ~ at the start of a word, and in no --option=~/path."""
    told = one_line(f"{SELFEMO} eval --model=~/model --corpus everyday", HOME=str(tmp_path))
    assert f"{tmp_path}/model: no such directory" in told
    assert with_home(["--json=~x-nobody/a", "a=~/b", "~/c"]) == ["--json=~x-nobody/a", "a=~/b", "~/c"]


def test_a_rank_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    line = one_line(f"{SELFEMO} train corpus.name=everyday output_dir={tmp_path}/run", RANK="x")
    assert "RANK='x': expected a whole number" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
        ({"RANK": "\u00b2"}, "RANK='\\\\xb2'"),
        ({"RANK": ""}, "RANK=''"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='9999"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        (
            {"WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "tcp://10.0.0.1:80"},
            "MASTER_PORT='tcp://10.0.0.1:80': expected a number",
        ),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no MASTER_ADDR: start the command with torchrun"),
    ],
)
def test_other_places_in_no_world(variables: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        place_in_world(variables)
    assert place_in_world({}) == Place(0, 1)
    met = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    assert place_in_world({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **met}) == Place(3, 4)


def test_a_path_that_is_too_long_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["selfemo", "report", "a" * 300])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("/config.yaml: longer than a path may be: correct it")


def test_what_the_terminal_shows_of_a_run_is_printable(tmp_path: Path) -> None:
    """Names of files and settings of a checkpoint are told; they may come from somebody else."""
    program = (
        "import sys; from pathlib import Path; from selfemo.process.terminal import Terminal\n"
        "shown = Terminal(True, Path(sys.argv[1]), 0)\n"
        "shown.say('said\\x1b]0;x\\x07'); shown.error('failed\\x1b[2J\\nand more\\n')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stderr == "said\\x1b]0;x\\x07\nfailed\\x1b[2J\nand more\n"


class _Examined(Exception):
    """Raised where the model of a generator is looked at, which comes after the world is."""


def test_an_operators_world_size_does_not_send_eval_and_chat_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_weights() -> None:
        raise _Examined

    model: Any = SimpleNamespace(check_weights=check_weights)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(_Examined):
        StandaloneEngines().generator(model)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    with pytest.raises(UserError, match="start it without torchrun"):
        StandaloneEngines().generator(model)


@pytest.mark.parametrize("target", ["demo", "smoke"])
@pytest.mark.parametrize("run_dir", ["runs/my run", "runs/it's; exit 1", 'a"b'])
def test_make_takes_a_directory_with_any_characters(tmp_path: Path, target: str, run_dir: str) -> None:
    """Programs of the environment only print their arguments here."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("selfemo", "torchrun", "python"):
        (programs / name).write_text(f'#!/bin/sh\nfor word; do echo "{name}: $word"; done\n')
        (programs / name).chmod(0o755)
    (tmp_path / "venv" / ".installed").touch()
    link = ROOT / f".venv-test-{os.getpid()}"
    link.symlink_to(tmp_path / "venv")
    try:
        ended = subprocess.run(
            ["make", "--silent", target, f"VENV={link.name}", f"RUN_DIR={run_dir}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        link.unlink()
    assert ended.returncode == 0, ended.stderr
    for program in ("selfemo", "torchrun"):
        assert f"{program}: output_dir={run_dir}" in ended.stdout.splitlines()
