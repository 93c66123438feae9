"""The draw of labelled dialogues is recorded by name; a resume finds it again, and refuses another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.training_corpus import load_run_corpus
from selfemo.records.directory import TRAINING_DIALOGUES_NAME, RunDirectory
from selfemo.records.reading import read_run
from selfemo.records.training_dialogues import record_training_dialogues
from tests.helpers.hidden_labels import IDS, config_for, shown_ids, write_corpus


def test_a_run_names_its_dialogues_and_a_resume_finds_them(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "c")
    config = replace(config_for(root), output_dir=str(tmp_path / "run"))
    run = RunDirectory.claim(config)
    record_training_dialogues(run, load_run_corpus(config), config)
    path = run.path(TRAINING_DIALOGUES_NAME)
    stored = json.loads(path.read_text())
    assert stored["labelled"] == [f"jsonl/train/{name}" for name in IDS if name in shown_ids()]
    assert stored["unlabelled"] == [f"jsonl/train/{name}" for name in IDS if name not in shown_ids()]
    assert read_run(run.root).training_dialogues == stored
    written = path.stat().st_mtime_ns
    record_training_dialogues(run, load_run_corpus(config), config)
    assert path.stat().st_mtime_ns == written


def test_another_draw_is_refused(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "c")
    config = config_for(root)
    run = RunDirectory(tmp_path)
    record_training_dialogues(run, load_run_corpus(config), config)
    stored = run.path(TRAINING_DIALOGUES_NAME).read_text()
    other = replace(config, seed=config.seed + 1)
    with pytest.raises(UserError, match=r"begun with other labelled dialogues \(seed: 5 before, 6 now\)"):
        record_training_dialogues(run, load_run_corpus(other), other)
    train = root / "train.jsonl"
    train.write_text(train.read_text().replace('"id": "d0"', '"id": "e0"'))  # the corpus has changed since
    with pytest.raises(UserError, match=r"\((un)?labelled: \d+ differ, such as jsonl/train/\w+\): restore"):
        record_training_dialogues(run, load_run_corpus(config), config)
    assert run.path(TRAINING_DIALOGUES_NAME).read_text() == stored


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: "[" * 100_000, "not JSON"),
        (lambda text: "\udcff", "not JSON"),
        (lambda text: text.replace("{", '{"x": null, ', 1), r"\(x: not an entry that a run writes\)"),
        (lambda text: text.replace('"seed": 5', '"seed": [[{}]]'), r"\(seed: \[\[\{\}\]\] before, 5 now\)"),
        (
            lambda text: text.replace('"labelled": [', '"labelled": [[7],'),
            r"\(labelled: 1 differ, such as \[7\]\)",
        ),
        (lambda text: "[]", r"\(labelled_share: None before, 0.4 now\)"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: Callable[[str], str], told: str) -> None:
    config = config_for(write_corpus(tmp_path / "c"))
    run, corpus = RunDirectory(tmp_path), load_run_corpus(config)
    record_training_dialogues(run, corpus, config)
    path = run.path(TRAINING_DIALOGUES_NAME)
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"{TRAINING_DIALOGUES_NAME}: .*{told}"):
        record_training_dialogues(run, corpus, config)
