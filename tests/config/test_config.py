"""Test that a written configuration reads back equal, and that its reference page is up to date."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.checks import initialised_architecture
from selfemo.config.engine_checks import engine_violations
from selfemo.config.layout import Layout
from selfemo.config.load import as_yaml, load_config
from selfemo.config.schema import CorpusConfig, RunConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def test_a_saved_configuration_reads_back_equal(tmp_path):
    config = replace(
        RunConfig(corpus=CorpusConfig(name="everyday")), seed=7, train=TrainConfig(learning_rate=3e-7)
    )
    (tmp_path / "run.yaml").write_text(as_yaml(config))
    assert load_config(tmp_path / "run.yaml") == config


def test_overrides_come_after_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 3\ntrain: {learning_rate: 1.0e-3, weight_decay: 0.5}\n")
    config = load_config(tmp_path / "run.yaml", ["train.learning_rate=1e-5", "corpus.name=everyday"])
    assert (config.seed, config.train.learning_rate, config.train.weight_decay, config.corpus.name) == (
        3,
        1e-5,
        0.5,
        "everyday",
    )


def test_every_mistake_is_reported_at_once():
    with pytest.raises(UserError) as refused:
        load_config(None, ["train.clip_grad=-1", "selfplay.turns=many", "reward.smoothing=0.5"])
    for part in ("train.clip_grad=-1", "selfplay.turns='many'", "reward.smoothing=0.5"):
        assert part in str(refused.value)


def test_thinking_needs_a_model_that_can_and_has_room_of_its_own():
    with pytest.raises(
        UserError, match=r"selfplay.thinking=true needs a model that can think: set model.path"
    ):
        load_config(None, ["selfplay.thinking=true"])
    caps = ["selfplay.max_answer_tokens=16", "selfplay.max_thinking_tokens=300"]
    assert load_config(None, caps).selfplay.max_recognizer_tokens == 16
    thinking = ["model.path=some/qwen3", "selfplay.thinking=true", *caps]
    assert load_config(None, thinking).selfplay.max_recognizer_tokens == 316
    with pytest.raises(UserError, match="completion of 316 tokens leaves no room"):
        load_config(None, [*thinking, "model.max_length=316"])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_a_user_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        load_config(path)


def test_the_reference_page_is_what_the_source_says():
    result = subprocess.run(
        [sys.executable, "tools/config_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("text", ["7", "2026-11-29", "runs/exp #3", "0x10", "12:30", "a: b", "it's", "off"])
def test_a_text_field_is_read_as_text(tmp_path, text):
    assert load_config(None, [f"output_dir={text}"]).output_dir == text
    assert load_config(None, [f'output_dir="{text}"']).output_dir == text
    if not set(text) & set("#:'"):  # YAML's own signs
        (tmp_path / "run.yaml").write_text(f"output_dir: {text}\ncorpus: {{path: {text}}}\n")
        config = load_config(tmp_path / "run.yaml")
        assert (config.output_dir, config.corpus.path) == (text, text)


def test_a_word_that_yaml_takes_for_a_truth_value_is_a_word(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {fuse_output_layer: on}\n")
    assert load_config(tmp_path / "run.yaml").train.fuse_output_layer == "on"
    assert load_config(None, ["train.fuse_output_layer=off", "sft.views=null"]).sft.views is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("-0", None), ("1_000", 1000), ("12", 12), ("1:30", None), ("on", None), ("true", None)],
)
def test_a_number_is_read_as_it_is_written(tmp_path, text, value):
    """YAML 1.1 takes 010 for 8 and 1:30 for 90, and pydantic takes on for 1."""
    (tmp_path / "run.yaml").write_text(f"corpus: {{name: everyday}}\niterations: {text}\n")
    for path, overrides in (
        (tmp_path / "run.yaml", ()),
        (None, ("corpus.name=everyday", f"iterations={text}")),
    ):
        if value is None and text != "-0":
            with pytest.raises(UserError, match=f"iterations='{text}': input should be a valid integer"):
                load_config(path, overrides)
        else:
            assert load_config(path, overrides).iterations == (value or 0)


@pytest.mark.parametrize("text", ["1:30.5", "yes"])
def test_a_fraction_is_read_as_it_is_written(text):
    with pytest.raises(UserError, match=f"train.learning_rate='{text}': input should be a valid number"):
        load_config(None, [f"train.learning_rate={text}"])


@pytest.mark.parametrize("override", ["sft={}", "sft={steps: 3}", "corpus=everyday"])
def test_a_section_is_not_replaced_as_a_whole(tmp_path, override):
    """What a file says of its other fields would be lost in silence."""
    (tmp_path / "run.yaml").write_text("sft: {expression_share: 0.5}\n")
    with pytest.raises(
        UserError, match=rf"is a section, .* such as {override.partition('=')[0]}\.\w+=\.\.\."
    ):
        load_config(tmp_path / "run.yaml", [override])


@pytest.mark.parametrize("place", ["", " ", "s3://bucket/run", "hdfs://x"])
def test_a_run_goes_into_a_directory_of_this_machine(place):
    """Of a variable that is not set, the current directory would become a run."""
    with pytest.raises(UserError, match=r"output_dir=.*: expected a directory of this machine"):
        load_config(None, [f"output_dir={place}"])


@pytest.mark.parametrize(
    ("text", "line"),
    [("train: {clip_grad: 2}\nseed: 3\ntrain: {adam_eps: 1}\n", 3), ("seed: 1\nseed: 1\n", 2)]
    + [("train:\n  clip_grad: 2\n  clip_grad: 3\n", 3)],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text, line):
    """YAML's loader keeps the last, and the whole first section would be lost."""
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"run\.yaml:{line}: not valid YAML \(the key '\w+' stands twice"):
        load_config(tmp_path / "run.yaml")


def test_home_is_expanded_in_every_path_and_variables_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/run\n")
    overrides = ["model.path=~/model", "corpus.path=~/data", "corpus.unlabelled=everyday, ~/more.jsonl"]
    config = load_config(tmp_path / "run.yaml", overrides)
    assert (config.output_dir, config.model.path, config.corpus.path, config.corpus.unlabelled) == (
        f"{tmp_path}/run",
        f"{tmp_path}/model",
        f"{tmp_path}/data",
        f"everyday,{tmp_path}/more.jsonl",
    )
    for wrong, told in (
        ("output_dir=$HOME/run", r"output_dir='\$HOME/run': expected a path without \$"),
        ("corpus.hold_out=meld,${DATA}/x", r"expected a path without \$"),
        ("model.path=~nobody-here/x", "expected the name of a user after ~"),
    ):
        with pytest.raises(UserError, match=told):
            load_config(None, [wrong])


@pytest.mark.parametrize("temperature", ["100", "2.01", "0.009", "0"])
def test_a_temperature_that_the_engine_would_refuse_or_change_is_refused(temperature):
    with pytest.raises(UserError, match=r"selfplay\.temperature=.*than or equal to"):
        load_config(None, [f"selfplay.temperature={temperature}"])


@pytest.mark.parametrize("field", ["train.adam_beta1=1", "train.adam_beta2=1", "seed=-1"])
def test_a_value_that_a_library_would_refuse_or_divide_by_is_refused(field):
    """Adam divides by 1 - beta ** step, and numpy's generators take no negative seed."""
    with pytest.raises(UserError, match=r"than (or equal to )?[01]"):
        load_config(None, [field])


def engine_problems(*overrides):
    config = load_config(None, ["corpus.name=everyday", *overrides])
    return list(engine_violations(config, Layout(), initialised_architecture(config.model)))


def test_a_cache_holds_one_sequence_in_whole_blocks_and_the_block_that_vllm_keeps():
    """Of 32 tokens each: 1,000 take 32 blocks; a token's keys and values take 4 layers x 4 heads x 32."""
    token_bytes, blocks = 2 * 4 * 4 * 32 * 4, 33
    least = blocks * 32 * token_bytes
    assert engine_problems("model.max_length=1000", f"rollout.kv_cache_bytes={least}") == []
    (told,) = engine_problems("model.max_length=1000", f"rollout.kv_cache_bytes={least - 1}")
    assert f"rollout.kv_cache_bytes={least - 1} holds 1055 tokens per engine" in told
    assert f"it takes at least {least}" in told


def test_sequences_beyond_the_tokens_of_an_engines_step_are_refused():
    assert engine_problems("rollout.max_num_seqs=16384") == []
    (told,) = engine_problems("rollout.max_num_seqs=16385")
    assert told.startswith("rollout.max_num_seqs=16385 is above the 16384 tokens")
