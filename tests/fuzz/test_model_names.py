"""Fuzz a model's name with the hub's cache behind it, and the card beside its weights."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from huggingface_hub import constants

from selfemo.common.errors import UserError
from selfemo.models.hub import HubName, hub_name, local_directory, published_name
from selfemo.report.vote_card import BEGIN, CARD_NAME, END, record_vote, vote_part
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens
from tests.report.test_model_card import _intervals, _voting

COMMIT = "a" * 40
NAMES = [b"Org/tiny", b"Org/tiny@main", b"Org/tiny@" + COMMIT.encode(), b"models/tiny"]
NAME_TOKENS = [b"Org", b"/", b"@", b"..", b"--", b".git", b"-", b"main", b"runs/", b"~", b"@refs/pr/1"]
CARD_TOKENS = [BEGIN.encode(), END.encode(), b"<!--", b"-->", b"\r", b"## "]


@fuzz
def test_hub_name(seed: int, tally: Tally, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find a model in the cache: a directory of its snapshots, or a path that is given back."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(scratch / "cache"))
    model = scratch / "cache" / "models--Org--tiny"
    snapshot, pointer = model / "snapshots" / COMMIT, model / "refs" / "main"
    for directory in (snapshot, pointer.parent):
        directory.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_text("{}")
    for rng in tally.batch(seed):
        typed, pointed = NAMES[0], COMMIT.encode()
        if rng.random() < 0.5:
            typed = damaged(rng, NAMES, NAME_TOKENS) if rng.random() < 0.9 else of_tokens(rng, NAME_TOKENS, 5)
        else:
            pointed = damaged(rng, [pointed], [b"../../..", b"main", b"\n"])
        pointer.write_bytes(pointed)
        path = typed.decode(errors="replace").replace("\0", "")

        def find(path: str = path) -> Path:
            name = hub_name(path)
            assert name is None or (isinstance(name, HubName) and name.repository.count("/") == 1)
            published_name(path)
            return local_directory(path)

        found = tally.try_input(find, (typed, pointed))
        assert found in (snapshot, Path(path))


@fuzz
def test_model_card(seed: int, tally: Tally, scratch: Path) -> None:
    """Write a vote into the card of somebody's model: it stays as it is, or has the vote in its place."""
    sound, path = f"# Model\n\n{vote_part()}\n\nLicence: none\n".encode(), scratch / CARD_NAME
    for rng in tally.batch(seed):
        content = damaged(rng, [sound], CARD_TOKENS) if rng.random() < 0.9 else of_tokens(rng, CARD_TOKENS)
        path.write_bytes(content)
        write = functools.partial(record_vote, scratch, "toy dev", _intervals(0.5), _voting(0.25))
        is_written = tally.try_input(write, content)
        assert not isinstance(is_written, UserError)
        assert (path.read_bytes() == content) != is_written
