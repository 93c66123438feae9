"""Test that Hugging Face -> shards -> Hugging Face is the identity for every family.

A shard holds its rows where Megatron and vLLM expect them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from selfemo.common.errors import UserError
from selfemo.models.architecture import read_architecture
from selfemo.models.geometry import fill_hf
from selfemo.models.parameters import LM_HEAD, hf_tensor_list, model_parameters
from selfemo.models.tensor_layouts import padded_vocab_size
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.rank_parameters import local_parameters
from tests.helpers.tiny_model import VOCAB_SIZE, fill_local, save_tiny

CASES = [
    ("qwen3", True),
    ("qwen3", False),
    ("qwen2", True),
    ("qwen2", False),
    ("llama", True),
    ("llama", False),
]


@pytest.mark.parametrize(("family", "tied"), CASES)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("side", ["megatron", "vllm"])
def test_shards_return_to_the_same_tensors_bitwise(
    tmp_path: Path, family: str, tied: bool, size: int, side: str
) -> None:
    hf = load_file(save_tiny(tmp_path, family, tied) / "model.safetensors")
    architecture = read_architecture(tmp_path)
    for parameter in model_parameters(architecture):
        back = {tensor.name: torch.full(tensor.shape, torch.nan) for tensor in parameter.tensors}
        for rank in range(size):
            placement = getattr(parameter, side)(rank, size)
            local = torch.zeros(placement.shape)
            fill_local(local, placement, hf)
            fill_hf(back, placement, local)
        for name, tensor in back.items():
            assert torch.equal(tensor, hf[name]), name


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_the_rules_name_every_tensor_that_transformers_writes_with_its_shape(
    tmp_path: Path, family: str, tied: bool
) -> None:
    stored = load_file(save_tiny(tmp_path, family, tied) / "model.safetensors")
    listed = hf_tensor_list(read_architecture(tmp_path))
    assert {tensor.name: tensor.shape for tensor in listed} == {
        name: tuple(tensor.shape) for name, tensor in stored.items()
    }
    HfDirectory(tmp_path).check(read_architecture(tmp_path))


def test_fused_qkv_interleaves_by_key_value_head_in_megatron_and_stacks_in_vllm(tmp_path: Path) -> None:
    hf = load_file(save_tiny(tmp_path, "qwen3", True) / "model.safetensors")
    architecture = read_architecture(tmp_path)
    fused = next(
        parameter
        for parameter in model_parameters(architecture)
        if parameter.name.endswith("1.self_attention.linear_qkv.weight")
    )
    query, key, value = (hf[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv")
    megatron, vllm = (torch.zeros(place(1, 2).shape) for place in (fused.megatron, fused.vllm))
    fill_local(megatron, fused.megatron(1, 2), hf)
    fill_local(vllm, fused.vllm(1, 2), hf)
    grouped = [
        torch.cat([query[g * 48 : (g + 1) * 48], key[g * 24 : (g + 1) * 24], value[g * 24 : (g + 1) * 24]])
        for g in (2, 3)
    ]
    assert torch.equal(megatron, torch.cat(grouped))
    assert torch.equal(vllm, torch.cat([query[96:], key[48:], value[48:]]))


def test_vllm_ranks_beyond_the_key_value_heads_share_one(tmp_path: Path) -> None:
    hf = load_file(save_tiny(tmp_path, "llama", True, kv_heads=2) / "model.safetensors")
    fused = next(
        p
        for p in model_parameters(read_architecture(tmp_path))
        if p.name.endswith("0.self_attention.linear_qkv.weight")
    )
    key = hf["model.layers.0.self_attn.k_proj.weight"]
    for rank in range(4):
        local = torch.zeros(fused.vllm(rank, 4).shape)
        fill_local(local, fused.vllm(rank, 4), hf)
        assert torch.equal(local[16:24], key[8 * (rank // 2) : 8 * (rank // 2) + 8])


def test_key_value_heads_that_do_not_divide_are_refused_by_name(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", True, kv_heads=2)
    fused = next(p for p in model_parameters(read_architecture(tmp_path)) if "linear_qkv" in p.name)
    with pytest.raises(
        UserError,
        match=r"layers.0.self_attn.k_proj.weight: 2 key-value heads do not divide over parallel.tensor=4",
    ):
        fused.megatron(0, 4)


def test_tied_models_hold_the_embedding_again_in_their_output_layer(tmp_path: Path) -> None:
    tied = model_parameters(read_architecture(save_tiny(tmp_path / "tied", "qwen3", True)))[-1]
    untied = model_parameters(read_architecture(save_tiny(tmp_path / "untied", "qwen3", False)))[-1]
    assert (tied.name, tied.tensors[0].name, tied.is_tied_copy) == (
        "output_layer.weight",
        "model.embed_tokens.weight",
        True,
    )
    assert (untied.tensors[0].name, untied.is_tied_copy) == (LM_HEAD, False)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_vocabulary_shards_are_equal_and_aligned(size: int) -> None:
    padded = padded_vocab_size(VOCAB_SIZE, size)
    assert padded >= VOCAB_SIZE
    assert padded % (16 * size) == 0
    assert padded % 64 == 0
    assert padded_vocab_size(padded, size) == padded


def test_published_qwen3_vocabulary_needs_no_padding_up_to_tensor_parallel_8() -> None:
    assert [padded_vocab_size(151_936, size) for size in (1, 2, 4, 8)] == [151_936] * 4


def _chunk(names: list[str], first_layer: int) -> nn.Module:
    """Make a module with parameters of these names, numbered as a pipeline stage does: its own
    layers from 0.
    """
    chunk = nn.Module()
    chunk.decoder = nn.Module()
    chunk.decoder.layers = nn.ModuleList()
    for name in names:
        *path, leaf = name.split(".")
        place: nn.Module = chunk
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        place.register_parameter(leaf, nn.Parameter(torch.zeros(1)))
    for index, layer in enumerate(chunk.decoder.layers):
        layer.layer_number = first_layer + index + 1
    return chunk


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("spec", [0, -1], ids=["local", "transformer-engine"])
def test_a_stage_is_known_under_the_names_of_both_layer_specs(tmp_path: Path, family: str, spec: int) -> None:
    architecture = read_architecture(save_tiny(tmp_path, family, True, layers=4))
    parameters = [parameter for parameter in model_parameters(architecture) if parameter.layer in (2, 3)]
    local_names = [
        parameter.names[spec].replace(f".{parameter.layer}.", f".{parameter.layer - 2}.", 1)
        for parameter in parameters
    ]
    assert any("linear_qkv.layer_norm_weight" in name for name in local_names) == (spec == -1)
    found = local_parameters([_chunk(local_names, first_layer=2)], architecture)
    assert [parameter for parameter, _ in found] == parameters
    with pytest.raises(UserError, match=r"decoder.layers.2.mlp.gate.weight has no rule in family"):
        local_parameters(
            [_chunk([*local_names, "decoder.layers.0.mlp.gate.weight"], first_layer=2)], architecture
        )
