"""Test corpora by name: the order in which places are tried, and the error if none has the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.corpora import registry
from selfemo.corpora.fetch import target_directory
from selfemo.corpora.readers.jsonl import EVERYDAY_PATH
from selfemo.corpora.registry import (
    DATA_VARIABLE,
    default_data_root,
    formats,
    load_corpus,
    locate_corpus,
    resolve_corpus,
)

Write = Callable[[str, str | bytes], Path]
LINE = json.dumps({"id": "a", "turns": [{"speaker": "Ana", "text": "Hi", "labels": ["joy"]}]})


@pytest.fixture
def jsonl_directory(write: Write) -> Path:
    for split in ("train", "dev", "test"):
        write(f"mine/{split}.jsonl", LINE)
    return write("mine/labels.json", '["neutral", "joy"]').parent


def test_every_name_of_the_configuration_is_found() -> None:
    published = {"meld", "meld_dyadic", "emorynlp", "emorynlp_video", "iemocap4", "iemocap6"}
    assert set(formats()) == {*published, "everyday", "jsonl"}


def test_auto_without_meld_is_the_bundled_corpus(tmp_path: Path) -> None:
    assert resolve_corpus("auto", data_root=tmp_path)[1] == EVERYDAY_PATH
    assert resolve_corpus("auto", EVERYDAY_PATH)[0].name == "everyday"


def test_a_directory_is_recognised_and_read(jsonl_directory: Path) -> None:
    corpus = load_corpus("auto", jsonl_directory)
    assert (corpus.name, corpus.labels) == ("jsonl", ("joy", "neutral"))
    assert [c.split for c in corpus.conversations] == ["train", "dev", "test"]


def test_of_two_corpora_in_one_directory_none_is_taken_in_silence(
    jsonl_directory: Path, write: Write
) -> None:
    write("mine/train_sent_emo.csv", "")
    with pytest.raises(UserError, match=r"holds the files of jsonl and of meld, .* name the format"):
        resolve_corpus("auto", jsonl_directory)
    assert resolve_corpus("jsonl", jsonl_directory)[0].name == "jsonl"
    (jsonl_directory / "train.jsonl").unlink()
    assert resolve_corpus("auto", jsonl_directory)[0].name == "meld"


@pytest.mark.parametrize("named", ["meld", "x"])
def test_a_format_beside_a_corpuss_name_is_not_left_out_in_silence(named: str) -> None:
    with pytest.raises(UserError, match=rf"--format {named}: everyday is read in its own form"):
        locate_corpus("everyday", named)
    assert locate_corpus("everyday", "everyday")[1] == locate_corpus("everyday")[1] == EVERYDAY_PATH


def test_a_single_file_is_the_split_it_is_named_after(jsonl_directory: Path, write: Write) -> None:
    assert [c.split for c in load_corpus("jsonl", jsonl_directory / "dev.jsonl").conversations] == ["dev"]
    exported = write("mine/kept.jsonl", LINE)
    assert [c.split for c in load_corpus("auto", exported).conversations] == ["train"]


def test_a_directory_needs_its_training_split_alone(jsonl_directory: Path) -> None:
    (jsonl_directory / "dev.jsonl").unlink()
    assert [c.split for c in load_corpus("jsonl", jsonl_directory).conversations] == ["train", "test"]
    (jsonl_directory / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl: does not exist"):
        load_corpus("jsonl", jsonl_directory)


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_a_dev_split_under_another_name_is_told(jsonl_directory: Path, name: str) -> None:
    """Left out in silence, it would be replaced by a part of train."""
    (jsonl_directory / "dev.jsonl").rename(jsonl_directory / f"{name}.jsonl")
    with pytest.raises(UserError, match=rf"{name}\.jsonl: is read under the name dev\.jsonl alone"):
        load_corpus("jsonl", jsonl_directory)


def test_the_data_root_may_lie_at_home_and_holds_no_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a manifest or an .env file says, no shell has read."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(DATA_VARIABLE, "~/data")
    assert default_data_root() == tmp_path / "data"
    assert target_directory("meld") == tmp_path / "data" / "meld"
    monkeypatch.setenv(DATA_VARIABLE, "$HOME/data")
    for read in (default_data_root, lambda: target_directory("meld")):
        with pytest.raises(UserError, match=r"\$SELFEMO_DATA is '\$HOME/data', expected a path without \$"):
            read()


def test_the_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFEMO_DATA", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"\$SELFEMO_DATA is .*absent"):
        load_corpus("auto")
    (tmp_path / "meld").mkdir()
    (tmp_path / "meld" / "train_sent_emo.csv").touch()
    monkeypatch.setenv("SELFEMO_DATA", str(tmp_path))
    assert resolve_corpus("auto")[1] == tmp_path / "meld"
    monkeypatch.delenv("SELFEMO_DATA")
    monkeypatch.setattr(registry, "_DEFAULT_ROOT", tmp_path / "absent")
    assert registry.default_data_root() is None
    assert resolve_corpus("auto")[0].name == "everyday"


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("mled", "", "corpus 'mled' is unknown, expected one of auto, .*did you mean 'meld'"),
        ("meld", "", "corpus meld: .*meld: does not exist, expected a directory with train_sent_emo.csv"),
        ("jsonl", "", "corpus jsonl: no place is known for it"),
        ("meld", "absent", "absent: does not exist"),
        ("auto", ".", "is no corpus this project knows"),
    ],
)
def test_nothing_to_read_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_corpus(name, path, data_root=tmp_path)
