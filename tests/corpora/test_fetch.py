"""Fetch corpora from a server on loopback: all files of the commit, or none, and never over another file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands.corpus import app
from selfemo.common.errors import UserError
from selfemo.corpora import registry
from selfemo.corpora.check import check_corpus
from selfemo.corpora.fetch import fetch_corpus, target_directory
from selfemo.corpora.registry import load_corpus
from selfemo.corpora.sources import SOURCES, Source, SourceFile
from tests.helpers.file_server import FileServer, file_server

CSV = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\r\nHello there, {},joy,0,0\r\nNo.,Ben,anger,0,1\r\n"
CONTENTS = {split: CSV.replace("there,", f"to {split},").encode() for split in ("train", "dev", "test")}
COMMIT = "c" * 40


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """Serve three small files as MELD's, and let $SELFEMO_DATA name a directory that does not exist yet."""
    files = tuple(
        SourceFile("o/r", COMMIT, f"d/{s}_sent_emo.csv", len(b), hashlib.sha256(b).hexdigest())
        for s, b in CONTENTS.items()
    )
    monkeypatch.setitem(SOURCES, "meld", Source("the licence", "the paper", files))
    monkeypatch.setenv("SELFEMO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with file_server() as running:
        running.files = {f"o/r/{COMMIT}/d/{s}_sent_emo.csv": b for s, b in CONTENTS.items()}
        yield running


def test_the_command_shows_the_licence_and_fetches_once(server: FileServer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "meld", "--from", server.url])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[:2] == ["meld: the paper", "licence: the licence"]
    assert lines[2] == "source: github.com/o/r at cccccccccccc, d/train_sent_emo.csv"
    assert lines.index("source: github.com/o/r at cccccccccccc, d/test_sent_emo.csv") < next(
        i for i, line in enumerate(lines) if line.startswith("fetching")
    )
    files = sorted(path.name for path in (tmp_path / "data" / "meld").iterdir())
    assert files == ["dev_sent_emo.csv", "test_sent_emo.csv", "train_sent_emo.csv"]
    assert [(tmp_path / "data/meld" / f"{s}_sent_emo.csv").read_bytes() for s in CONTENTS] == [
        *CONTENTS.values()
    ]
    server.asked.clear()
    again = CliRunner().invoke(app, ["fetch", "meld", "--from", server.url])
    assert "all files are there already" in again.output
    assert server.asked == []


@pytest.mark.parametrize("body", [b"other", None, CONTENTS["test"] + b"x"])
def test_a_changed_or_absent_file_leaves_nothing(
    server: FileServer, tmp_path: Path, body: bytes | None
) -> None:
    """The last of three: the first two were sound."""
    last = f"o/r/{COMMIT}/d/test_sent_emo.csv"
    server.files = {path: data for path, data in server.files.items() if path != last}
    if body is not None:
        server.files[last] = body
    wanted = (
        "cannot be fetched .*Not Found" if body is None else "has changed .SHA-256 .*: nothing was written"
    )
    with pytest.raises(UserError, match=wanted) as refused:
        fetch_corpus("meld", target_directory("meld"), server.url)
    assert "\n" not in str(refused.value)
    assert last in str(refused.value)
    assert not (tmp_path / "data").exists()


def test_without_a_network_the_line_names_what_to_do(server: FileServer, tmp_path: Path) -> None:
    with file_server() as gone:
        url = gone.url
    with pytest.raises(UserError, match=r"cannot be fetched \(.*refused") as refused:
        fetch_corpus("meld", target_directory("meld"), url)
    told = str(refused.value)
    assert f"copy the files of meld into {tmp_path / 'data' / 'meld'}" in told
    assert "corpus.name=everyday" in told
    assert "\n" not in told


def test_a_file_of_yours_is_left_alone(server: FileServer, tmp_path: Path) -> None:
    mine = tmp_path / "data" / "meld" / "dev_sent_emo.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"dev_sent_emo.csv: is not the file that meld's repository has"):
        fetch_corpus("meld", target_directory("meld"), server.url)
    assert [path.name for path in mine.parent.iterdir()] == ["dev_sent_emo.csv"]
    assert mine.read_text() == "mine"
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "host", "message"),
    [
        ("mled", "", "corpus fetch mled: expected one of meld, emorynlp .did you mean 'meld'"),
        ("iemocap", "", "corpus fetch iemocap: expected one of meld, emorynlp"),
        ("meld", "file:///etc", "--from file:///etc: expected an address that begins with https://"),
        ("meld", "http://[", "cannot be fetched"),
    ],
)
def test_a_mistake_is_one_line(
    server: FileServer, tmp_path: Path, name: str, host: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fetch_corpus(name, tmp_path / name, host or server.url)


def test_a_missing_corpus_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"corpus emorynlp: .*`selfemo corpus fetch emorynlp`.*set corpus.path"
    ):
        load_corpus("emorynlp", data_root=tmp_path)
    with pytest.raises(UserError, match="corpus iemocap4: ") as other:
        load_corpus("iemocap4", data_root=tmp_path)
    assert "fetch" not in str(other.value)
    monkeypatch.delenv("SELFEMO_DATA", raising=False)
    monkeypatch.setattr(registry, "_DEFAULT_ROOT", tmp_path / "absent")
    with pytest.raises(UserError, match=r"no data directory is named: set \$SELFEMO_DATA"):
        target_directory("meld")


@pytest.mark.long
@pytest.mark.parametrize("name", [*SOURCES])
def test_the_pinned_files_are_those_that_are_counted(
    name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real files, served; EmoryNLP's training split also in CoG-BART's layout of one line."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for layout in ("here", "one line"):
        with file_server() as server:
            for file in SOURCES[name].files:
                data = (data_root / name / file.name).read_bytes()
                if file.as_json and layout == "one line":
                    data = json.dumps(json.loads(data)).encode()
                    assert len(data) == file.size_bytes
                server.files[file.address] = data
            written = fetch_corpus(name, tmp_path / layout / name, server.url)
            assert [path.name for path in written] == [file.name for file in SOURCES[name].files]
            server.files[file.address] = b"{" + data
            with pytest.raises(UserError, match="has changed"):
                fetch_corpus(name, tmp_path / "changed" / name, server.url)
        report = check_corpus(str(tmp_path / layout / name))
        assert report.problems == ()
        assert not any("published" in oddity for oddity in report.oddities), report.oddities
