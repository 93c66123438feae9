"""Test config.json as transformers 4 and 5 write it, published models by name, and errors that name
the field.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from selfemo.common.errors import UserError
from selfemo.models.architecture import architecture_by_name, hf_config, read_architecture
from selfemo.models.config_fields import HARMLESS, LENGTHS
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
        ({"rope_theta": None}, "rope_theta is None; expected a positive number"),
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


SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-chat-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.32.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def _write_whole(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("config", "theta"),
    [(SMOLLM2, 1e5), (LLAMA_2, 1e4), (QWEN2_5, 1e6)],
    ids=["SmolLM2", "Llama 2", "Qwen2.5"],
)
def test_published_configs_are_read(tmp_path: Path, config: dict[str, Any], theta: float) -> None:
    assert read_architecture(_write_whole(tmp_path, config)).rope_theta == theta


@pytest.mark.parametrize(
    "field",
    [
        {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}},
        {"partial_rotary_factor": 0.5},
        {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        {"rope_parameters": {"rope_type": "default", "type": "yarn", "rope_theta": 1e6}},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"logit_scale": 0.5},
        {"is_causal": False},
        {"is_causal": None},
        {"sliding_window": 4096},
        {"qk_norm": True},
        {"qkv_bias": True},
        {"bias": True},
        {"attention_chunk_size": 8192},
        {"per_layer_config": {"0": {"hidden_act": "gelu"}}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"no_rope_layers": [1, 0]},
        {"layer_types": "sliding_attention"},
        {"some_future_field": False},
    ],
    ids=lambda field: ",".join(field),
)
def test_a_field_that_an_engine_may_obey_is_refused_by_name(tmp_path: Path, field: dict[str, Any]) -> None:
    *_, name = field
    with pytest.raises(UserError, match=rf"config\.json: .*{name}"):
        read_architecture(_write_whole(tmp_path, LLAMA_2 | field))


@pytest.mark.parametrize("named", ["qwen2", None])
def test_a_model_type_of_another_class_is_refused(tmp_path: Path, named: str | None) -> None:
    """transformers builds what model_type names, and vLLM what architectures does."""
    with pytest.raises(UserError, match=r"model_type is .*, expected 'llama' for LlamaForCausalLM"):
        read_architecture(_write_whole(tmp_path, LLAMA_2 | {"model_type": named}))


def test_a_padding_token_without_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"pad_token_id=32000 has no row in the embedding \(vocab_size=32000\)"
    ):
        read_architecture(_write_whole(tmp_path, LLAMA_2 | {"pad_token_id": 32000}))
    with pytest.raises(AssertionError, match="within num_embeddings"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path, num_hidden_layers=1))
    read_architecture(_write_whole(tmp_path, LLAMA_2 | {"pad_token_id": -1}))  # as in the first Llama's


def test_a_quantizers_file_beside_the_config_is_refused(tmp_path: Path) -> None:
    (_write_whole(tmp_path, LLAMA_2) / "hf_quant_config.json").write_text('{"quantization": {}}')
    with pytest.raises(
        UserError, match=r"hf_quant_config\.json: vLLM reads the weights beside it as quantised"
    ):
        read_architecture(tmp_path)


@pytest.mark.parametrize("field", LENGTHS)
def test_the_longest_sequence_is_the_least_that_is_told(tmp_path: Path, field: str) -> None:
    for told, longest in ((1024, 1024), (9999, 4096), (None, 4096)):
        model = _write_whole(tmp_path, LLAMA_2 | {field: told})
        assert read_architecture(model).max_position_embeddings == longest


def test_every_length_that_vllm_obeys_is_obeyed_or_refused(tmp_path: Path) -> None:
    root = Path(find_spec("vllm").submodule_search_locations[0])
    source = (root / "transformers_utils" / "model_arch_config_convertor.py").read_text(encoding="utf-8")
    (keys,) = re.findall(r"possible_keys = \[(.*?)\]", source, re.DOTALL)
    obeyed = set(re.findall(r'"(\w+)"', keys))
    assert {"max_position_embeddings", *LENGTHS} <= obeyed
    for other in obeyed - {"max_position_embeddings", *LENGTHS}:
        with pytest.raises(UserError, match=f"field '{other}' is not known"):
            read_architecture(_write_whole(tmp_path, LLAMA_2 | {other: 1024}))


def test_every_field_that_transformers_4_writes_is_known(tmp_path: Path) -> None:
    """Programs that dump to_dict() write all of them, at their defaults."""
    defaults = {"tie_encoder_decoder": False, "is_decoder": False, "torchscript": False, "pruned_heads": {}}
    defaults |= {"cross_attention_hidden_size": None, "add_cross_attention": False, "use_bfloat16": False}
    assert read_architecture(_write_whole(tmp_path, LLAMA_2 | defaults)).num_layers == 32


@pytest.mark.parametrize("name", ["dual_chunk_attention_config", "logit_scale", "some_future_field"])
def test_null_asks_for_nothing(tmp_path: Path, name: str) -> None:
    plain = read_architecture(_write_whole(tmp_path / "plain", LLAMA_2))
    assert read_architecture(_write_whole(tmp_path / "null", LLAMA_2 | {name: None})) == plain


def test_no_harmless_field_is_one_that_the_engines_models_read() -> None:
    """pretraining_tp splits a product into parts in transformers 4; its sum is the same."""
    read: set[str] = set()
    for program, name in (("vllm.model_executor.models", ""), ("transformers.models", "modeling_")):
        root = Path(find_spec(program.partition(".")[0]).submodule_search_locations[0])
        for family in families():
            path = root.joinpath(*program.split(".")[1:], *([family] if name else []), f"{name}{family}.py")
            source = path.read_text(encoding="utf-8")
            read |= set(re.findall(r"\bconfig\.(\w+)", source))
            read |= set(re.findall(r'getattr\(\s*(?:self\.)?config,\s*"(\w+)"', source))
    assert {"hidden_size", "logit_scale", "is_causal", "rope_parameters"} <= read
    # ids only choose padding rows; use_cache and _attn_implementation choose how, not what
    how = {"pad_token_id", "max_window_layers", "_attn_implementation", "use_cache", "initializer_range"}
    assert read & HARMLESS <= how


@pytest.mark.parametrize("family", sorted(families()))
@pytest.mark.parametrize("field", ["rope_theta", "head_dim", "num_key_value_heads", "tie_word_embeddings"])
def test_a_field_that_is_missing_has_transformers_value(tmp_path: Path, family: str, field: str) -> None:
    """Only fields with a value that transformers knows for the family may be missing."""
    model = tiny_model(family, tied=False, heads=32, kv_heads=32, head_dim=128)
    config = json.loads(json.dumps(model.config.to_dict()))
    config["architectures"] = [families()[family].hf_architecture]
    if field == "rope_theta":
        config["rope_parameters"] = None
    config.pop(field, None)
    ours = read_architecture(_write_whole(tmp_path, config))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.head_dim, ours.num_kv_heads) == (theirs.head_dim if family != "qwen2" else 8, 32)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "base"),
    [
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_scaling": {"type": "default", "rope_theta": 5e5}}, 5e5),
    ],
)
def test_the_rotary_base_is_read_from_either_place(
    tmp_path: Path, fields: dict[str, Any], base: float
) -> None:
    assert read_architecture(_write_whole(tmp_path, LLAMA_2 | fields)).rope_theta == base


def test_two_rotary_bases_are_refused(tmp_path: Path) -> None:
    fields = {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    with pytest.raises(UserError, match=r"rope_parameters.rope_theta=1e\+06, rope_theta=10000 differ"):
        read_architecture(_write_whole(tmp_path, LLAMA_2 | fields))
