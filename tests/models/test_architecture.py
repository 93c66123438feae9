"""Test config.json as transformers 4 and 5 write it, published models by name, and errors that name
the field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from selfemo.common.errors import UserError
from selfemo.models.architecture import architecture_by_name, hf_config, read_architecture
from selfemo.models.family import families
from selfemo.models.parameters import hf_tensor_list
from tests.helpers.tiny_model import tiny_model

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
}
"""Qwen3-8B's, as published."""


def _write(directory: Path, **changes: Any) -> Path:
    config = {key: value for key, value in (QWEN3 | changes).items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_published_config_and_the_name_agree(tmp_path: Path) -> None:
    assert read_architecture(_write(tmp_path)) == architecture_by_name("Qwen3-8B")


def test_transformers_5_spelling_gives_the_same_architecture(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1000000}
    read = read_architecture(
        _write(tmp_path, rope_theta="absent", torch_dtype="absent", dtype="bfloat16", rope_parameters=rope)
    )
    assert read == architecture_by_name("qwen3-8b")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen3-0.6b", 0.596), ("qwen3-1.7b", 1.72), ("qwen3-4b", 4.02), ("qwen3-8b", 8.19)],
)
def test_named_models_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    count = sum(tensor.elements for tensor in hf_tensor_list(architecture_by_name(name)))
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("family", sorted(families()))
def test_a_config_that_transformers_wrote_is_read_and_one_that_we_wrote_is_read_back(
    tmp_path: Path, family: str
) -> None:
    model = tiny_model(family, tied=True)
    model.config.save_pretrained(tmp_path)
    ours = read_architecture(tmp_path)
    assert (ours.num_heads, ours.num_kv_heads, ours.rope_theta, ours.tie_word_embeddings) == (8, 4, 1e6, True)
    assert ours.head_dim == (24 if family == "qwen3" else 8)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(ours)))
    assert read_architecture(tmp_path) == ours
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == 1e6
    assert (theirs.head_dim, theirs.tie_word_embeddings) == (ours.head_dim, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Qwen3MoeForCausalLM"]},
            r"'Qwen3MoeForCausalLM' is not supported .*supported: Llama.*, Qwen2.*, Qwen3ForCausalLM",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling asks for rope type 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            "rope_parameters asks for rope type 'llama3'",
        ),
        ({"use_sliding_window": True}, "use_sliding_window=True is not implemented"),
        ({"attention_bias": True}, "attention_bias=True is not implemented"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not implemented"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"num_hidden_layers": "absent"}, "num_hidden_layers is None; expected a positive integer"),
        ({"rope_theta": "absent"}, "rope_theta is None; expected a positive number"),
        ({"num_key_value_heads": 5}, "num_attention_heads=32 is not a multiple of num_key_value_heads=5"),
        ({"torch_dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_architecture(_write(tmp_path, **changes))


def test_unreadable_configs_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_architecture(tmp_path)
    with pytest.raises(UserError, match=r"'qwen3-9b' is not known by name \(did you mean 'qwen3-[48]b'\?\)"):
        architecture_by_name("qwen3-9b")
