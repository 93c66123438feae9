"""Test that digests decide what a run is: moved or respelled inputs are its own, changed ones are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.records.content import model_digests
from selfemo.records.directory import SUMMARY_NAME, RunDirectory
from selfemo.records.inputs import INPUTS_NAME, check_inputs, record_inputs
from tests.helpers.hidden_labels import CONFIG, PLANTED, write_corpus

DATA_BYTES = 1 << 20


def write_model(root: Path) -> Path:
    root.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (root / name).write_text(json.dumps({"of": name}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [DATA_BYTES // 4], "data_offsets": [0, DATA_BYTES]}})
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(DATA_BYTES)
    (root / "model.safetensors").write_bytes(data)
    return root


def begun(tmp_path: Path, with_digests: bool = True) -> RunConfig:
    """Begin a run that has a checkpoint, from a model and a corpus below tmp_path."""
    config = placed(
        CONFIG, tmp_path / "run", write_model(tmp_path / "model"), write_corpus(tmp_path / "corpus")
    )
    run = RunDirectory.claim(config)
    if with_digests:
        record_inputs(run.root, config, load_run_corpus(config))
    run.path("checkpoints", "sft-000001").mkdir(parents=True)
    return config


def placed(config: RunConfig, run: Path | str, model: Path | str, corpus: Path | str) -> RunConfig:
    return replace(
        config,
        output_dir=str(run),
        model=replace(config.model, path=str(model)),
        corpus=replace(config.corpus, path=str(corpus)),
    )


def spelled_otherwise(tmp_path: Path, config: RunConfig) -> RunConfig:
    (tmp_path / "link").symlink_to(tmp_path / "model")
    return placed(config, os.path.relpath(tmp_path / "run"), tmp_path / "link", f"{tmp_path}/corpus/")


def copied(tmp_path: Path, config: RunConfig) -> RunConfig:
    (tmp_path / "there").mkdir()
    for name in ("run", "model", "corpus"):
        shutil.move(tmp_path / name, tmp_path / "there" / name)
    (tmp_path / "there" / "model" / "README.md").write_text("notes that no run reads")
    return placed(config, *(tmp_path / "there" / name for name in ("run", "model", "corpus")))


@pytest.mark.parametrize("elsewhere", [spelled_otherwise, copied])
@pytest.mark.parametrize("is_complete", [False, True])
def test_a_run_is_known_by_its_content_wherever_it_lies(tmp_path, elsewhere, is_complete):
    config = begun(tmp_path)
    if is_complete:
        RunDirectory(tmp_path / "run").write_json(SUMMARY_NAME, {"schema": 1})
    now = elsewhere(tmp_path, config)
    run = RunDirectory.claim(now)
    assert run.has_checkpoint
    assert check_inputs(run.root, now, load_run_corpus(now))


def test_a_run_without_digests_is_known_by_its_resolved_paths(tmp_path):
    config = begun(tmp_path, with_digests=False)
    RunDirectory.check(spelled_otherwise(tmp_path, config))
    with pytest.raises(UserError, match=r"\(other model\.path, corpus\.path;"):
        RunDirectory.check(copied(tmp_path, config))


def one_weight(root: Path) -> None:
    """Train: every block of data is another."""
    path = root / "model" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-DATA_BYTES] + bytes([1]) * DATA_BYTES)


def the_tokenizer(root: Path) -> None:
    (root / "model" / "tokenizer.json").write_text("{}")


def a_label(root: Path) -> None:
    text = (root / "corpus" / "dev.jsonl").read_text()
    (root / "corpus" / "dev.jsonl").write_text(text.replace(PLANTED, "anger"))


CHANGES = [
    (one_weight, "model.path", "model: other model.safetensors than the run in "),
    (the_tokenizer, "model.path", "model: other tokenizer.json than the run in "),
    (a_label, "corpus.path", "corpus: other dialogues than the run in "),
]


@pytest.mark.parametrize(("change", "setting", "told"), CHANGES)
def test_a_changed_input_is_refused_by_name_in_its_place_and_elsewhere(
    tmp_path: Path, change: Callable[[Path], None], setting: str, told: str
) -> None:
    config = begun(tmp_path)
    stored = (tmp_path / "run" / INPUTS_NAME).read_bytes()
    change(tmp_path)
    with pytest.raises(UserError, match=told):
        record_inputs(tmp_path / "run", config, load_run_corpus(config))
    assert (tmp_path / "run" / INPUTS_NAME).read_bytes() == stored
    with pytest.raises(UserError, match=rf"\(other {setting};"):
        RunDirectory.claim(copied(tmp_path, config))


def test_the_digest_of_shards_covers_those_of_the_index_alone(tmp_path):
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    before = model_digests(model)
    assert set(before) == {"config.json", "tokenizer.json", "a.safetensors"}
    (model / "consolidated.safetensors").write_text("another program's")
    assert model_digests(model) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"model": 3}', "not the digests of a run's inputs"),
        ('{"model": {"config.json": {}}, "corpus": {}}', "not the digests of a run's inputs"),
        ('{"model": ', "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
    ],
)
def test_damaged_digests_are_one_line(tmp_path, text, told):
    config = begun(tmp_path)
    (tmp_path / "run" / INPUTS_NAME).write_text(text)
    with pytest.raises(UserError, match=f"{INPUTS_NAME}: {told}.*restore it as the run wrote it$"):
        check_inputs(tmp_path / "run", config, load_run_corpus(config))
