"""Test which settings a finished model is used with: its run's, never another program's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.load import as_yaml, load_config
from selfemo.inference.finished_model import ASKED_DEFAULTS, DEFAULTS, find_model
from selfemo.models.architecture import architecture_by_name, hf_config

NEMO_RL = "policy:\n  model_name: m\ngrpo:\n  num_prompts_per_step: 32\n"
HYDRA = "defaults:\n  - _self_\n  - model: base\nseed: 1\noutput_dir: ${now:%Y}\nmodel:\n  name: m\n"
AXOLOTL = "base_model: m\nanchors: &a {lr: 1}\nmore: *a\nlearning_rate: 1e-4\noutput_dir: out\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a model directory inside another one; its positions are 40,960."""
    directory = tmp_path / "step_9" / "hf"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(hf_config(architecture_by_name("qwen3-0.6b"))))
    return directory


def settings_of_a_run(model: Path, *overrides: str) -> None:
    (model.parent / "config.yaml").write_text(as_yaml(load_config(None, overrides)))


@pytest.mark.parametrize("text", [NEMO_RL, HYDRA, AXOLOTL, "- a list\n", "", "\x00"])
def test_settings_of_another_program_are_not_a_runs(model: Path, text: str) -> None:
    (model.parent / "config.yaml").write_text(text)
    found = find_model(model)
    assert found.settings_from.startswith("defaults (")
    assert found.settings_from.endswith("config.yaml is another program's)")
    assert found.config.model.path == str(model)


def test_settings_of_the_run_are_read_and_an_option_leaves_them_out(model: Path) -> None:
    assert find_model(model).settings_from == DEFAULTS
    settings_of_a_run(model, "corpus.history_turns=7")
    assert find_model(model).config.corpus.history_turns == 7
    asked = find_model(model, defaults=True)
    assert asked.settings_from == ASKED_DEFAULTS
    assert asked.config.corpus.history_turns != 7


@pytest.mark.parametrize("text", ["corpus: [", "output_dir: x\n"])
def test_damaged_settings_of_a_run_are_not_taken_for_another_programs(model: Path, text: str) -> None:
    settings_of_a_run(model)
    stored = model.parent / "config.yaml"
    (model.parent / "metrics.jsonl").write_text("")
    if text.startswith("corpus"):
        stored.write_text(text)
    else:
        stored.write_text(stored.read_text() + "no_such_key: 1\n")
    with pytest.raises(UserError, match=r"config\.yaml.*(not valid YAML|unknown key no_such_key)"):
        find_model(model)


@pytest.mark.parametrize("from_run", [False, True])
def test_a_length_above_the_models_positions_is_refused(model: Path, from_run: bool) -> None:
    longer = ["model.max_length=50000", "train.max_tokens_per_microbatch=50000"]
    if from_run:
        settings_of_a_run(model, *longer)
    with pytest.raises(UserError, match=r"model\.max_length=50000 .*above the 40960 positions"):
        find_model(model, () if from_run else longer)
    assert find_model(model, ["model.max_length=4096"]).config.model.max_length == 4096


def test_a_run_names_the_corpus_that_auto_meant(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFEMO_DATA", str(tmp_path))
    settings_of_a_run(model, "corpus.name=auto")
    assert find_model(model).config.corpus.name == "everyday"
    meld = tmp_path / "meld"
    meld.mkdir()
    for split in ("train", "dev", "test"):
        (meld / f"{split}_sent_emo.csv").write_text("")
    assert find_model(model, defaults=True).config.corpus.name == "meld"
    assert find_model(model).config.corpus.name == "everyday"


def test_a_corpus_that_is_nowhere_stays_auto(tmp_path: Path) -> None:
    config = load_config(None, ["corpus.name=auto", f"corpus.path={tmp_path / 'nowhere'}"])
    assert config.corpus.name == "auto"
