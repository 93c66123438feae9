"""Test that a config.json means to transformers, which builds the engine's model, what it means here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.models.architecture import architecture_by_name, hf_config, read_architecture
from selfemo.tokens.transformers_config import check_transformers_config

PLAIN = hf_config(architecture_by_name("qwen3-0.6b"))
LLAMA = PLAIN | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN2 = PLAIN | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _check(directory: Path, config: dict[str, object]) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    check_transformers_config(directory, read_architecture(directory))


@pytest.mark.parametrize("config", [PLAIN, LLAMA, QWEN2], ids=["qwen3", "llama", "qwen2"])
@pytest.mark.parametrize(
    "left_out", [(), ("rope_theta",), ("head_dim", "hidden_size"), ("num_key_value_heads",)], ids=str
)
def test_a_family_means_the_same_to_both(
    tmp_path: Path, config: dict[str, object], left_out: tuple[str, ...]
) -> None:
    """Defaults for fields that are left out are transformers' own, too."""
    kept = {name: value for name, value in config.items() if name not in left_out}
    _check(tmp_path, {"hidden_size": 2048, **kept, "num_attention_heads": 32})


@pytest.mark.parametrize(
    "odd",
    [
        {"use_cache": None},
        {"tie_word_embeddings": "false"},
        {"rms_norm_eps": 1},
        {"attention_bias": None},
        {"bos_token_id": [1]},
        {"initializer_range": "0.02"},
        {"layer_types": ["full_attention"]},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_what_transformers_cannot_read_is_one_line(tmp_path: Path, odd: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"config\.json: transformers.* refuses it .*{next(iter(odd))}"):
        _check(tmp_path, PLAIN | odd)


def test_of_two_fields_neither_is_chosen_in_silence(tmp_path: Path) -> None:
    """transformers takes the older rope_scaling, and with it its own rope_theta."""
    rope = {"rope_type": "default", "rope_theta": 5e5}
    fields = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    _check(tmp_path, fields | {"rope_parameters": rope})
    with pytest.raises(UserError, match=r"rope_theta is 500000.0 here and 10000.0 to transformers"):
        _check(tmp_path, fields | {"rope_parameters": rope, "rope_scaling": {"type": "default"}})
