"""Test that a dry run refuses what a launch would refuse in set-up, and that both read one list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selfemo.commands.preflight import check_output, preflight
from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import ModelConfig, RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.records.directory import RunDirectory
from selfemo.records.inputs import record_inputs
from tests.helpers.unwritable import as_reader
from tests.tokens.test_thinking import BODY

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    max_length=512,
)
WORDS = "a b c d e f g h"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from selfemo.tokens.init_model import init_model

    return init_model(tmp_path_factory.mktemp("models") / "tiny", SHAPE, ["some words"] * 9, seed=1)


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def settings(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(None, ["corpus.name=everyday", f"output_dir={tmp_path / 'run'}", *overrides])


def refused(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as told:
        preflight(settings(tmp_path, *overrides), 1)
    assert not (tmp_path / "run").exists()
    return str(told.value)


def write_corpus(root: Path, labelled: dict[str, list[str]]) -> Path:
    """Write a corpus of one dialogue per split, whose turns have these labels ("" is none)."""
    root.mkdir()
    (root / "labels.json").write_text('["anger", "joy"]')
    for split in ("train", "dev", "test"):
        turns = [
            {"speaker": "AB"[i % 2], "text": f"{split} {i} {WORDS}", "labels": [label] if label else []}
            for i, label in enumerate(labelled.get(split, ["joy", "anger"]))
        ]
        (root / f"{split}.jsonl").write_text(json.dumps({"id": split, "turns": turns}) + "\n")
    return root


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.head_dim=24"], "head_dim is 24, and vLLM on a CPU takes one of 32"),
        (["parallel.context=2", "train.dtype=bfloat16"], "parallel.context=2 needs Transformer Engine"),
        (["model.max_length=160"], "model.max_length=160 holds fewer: lower corpus.history_turns"),
        (["model.vocab_size=9"], "model.vocab_size=9: expected at least"),
    ],
)
def test_settings_that_a_model_initialised_here_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], line: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert line in refused(tmp_path, *overrides)


def test_a_model_that_its_settings_do_not_fit(tmp_path: Path, model: Path, copied: Path) -> None:
    path = f"model.path={copied}"
    assert "above the 512 positions" in refused(tmp_path, path, "model.max_length=513")
    assert "model.max_length=160 holds fewer" in refused(tmp_path, path, "model.max_length=160")
    fits = [path, "model.max_length=512"]
    (copied / "chat_template.jinja").write_text(BODY + "{%- endif %}")
    thinking = ["selfplay.thinking=true", "selfplay.max_thinking_tokens=8"]
    assert "cannot be asked to think" in refused(tmp_path, *fits, *thinking)
    stored = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(stored | {"vocab_size": 270}))
    assert "tokens beyond the 270 rows of the embedding" in refused(tmp_path, *fits)


def test_a_corpus_that_no_stage_can_draw_from(tmp_path: Path, model: Path) -> None:
    fits = [f"model.path={model}", "model.max_length=512", "corpus.name=jsonl"]
    dev = write_corpus(tmp_path / "dev", {"dev": ["", ""]})
    assert "its dev split holds no labelled turn to score a run on" in refused(
        tmp_path, *fits, f"corpus.path={dev}"
    )
    alone = write_corpus(tmp_path / "alone", {"train": ["", "joy", "", "anger"]})
    assert "no two consecutive annotated turns" in refused(tmp_path, *fits, f"corpus.path={alone}")
    first = write_corpus(tmp_path / "first", {"train": ["joy", ""]})
    assert "no annotated reply" in refused(tmp_path, *fits, f"corpus.path={first}")


def test_labels_that_the_affinity_has_no_place_for(tmp_path: Path, model: Path) -> None:
    fits = [f"model.path={model}", "model.max_length=512", "reward.affinity=circumplex", "corpus.name=jsonl"]
    root = write_corpus(tmp_path / "corpus", {})
    (root / "labels.json").write_text('["anger", "joy", "curiosity"]')
    told = refused(tmp_path, *fits, f"corpus.path={root}")
    assert "label 'curiosity' has no place on it" in told


def test_an_output_directory_that_cannot_be_made_is_told_as_a_launch_would(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = settings(tmp_path, f"output_dir={tmp_path / 'file' / 'run'}")
    with pytest.raises(UserError) as dry_run:
        preflight(config, 1)
    with pytest.raises(UserError) as launch:
        RunDirectory.claim(config)
    assert str(dry_run.value) == str(launch.value)
    assert "file/run: cannot be written (Not a directory): make it writable" in str(launch.value)
    told = as_reader(tmp_path, check_output, tmp_path / "run")
    assert f"{tmp_path / 'run'}: cannot be written (Permission denied)" in told


def test_a_sound_model_passes_until_it_is_changed_under_a_run(tmp_path: Path, copied: Path) -> None:
    config = settings(tmp_path, f"model.path={copied}", "model.max_length=512")
    assert "1 processes" in preflight(config, 1)
    run = RunDirectory.claim(config)
    record_inputs(run.root, config, load_run_corpus(config))
    run.path("checkpoints", "sft-000001").mkdir(parents=True)
    preflight(config, 1)
    stored = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps(stored | {"x": 1}))
    with pytest.raises(UserError, match=r"model: other tokenizer_config\.json than the run in"):
        preflight(config, 1)


def test_the_ranks_of_a_launch_read_the_same_list(tmp_path: Path, model: Path) -> None:
    from selfemo.system import _read_model

    config = settings(tmp_path, f"model.path={model}", "model.max_length=160")
    with pytest.raises(UserError, match=r"model\.max_length=160 holds fewer"):
        _read_model(model, config, load_run_corpus(config))
