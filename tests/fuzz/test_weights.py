"""Fuzz everything that converters read from a download.

That is config.json, the index, a safetensors file, a checkpoint's metadata and its plain values.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from selfemo.common.errors import UserError
from selfemo.models.architecture import INDEX_NAME, SINGLE_NAME, Architecture, read_architecture
from selfemo.models.parameters import hf_tensor_list
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.metadata_pickle import METADATA_NAME, read_metadata
from selfemo.weights.torch_dist import COMMON_NAME, read_common
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "vocab_size": 3,
    "max_position_embeddings": 8,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "rms_norm_eps": 1e-6,
    "layer_types": ["full_attention"],
    "tie_word_embeddings": True,
    "dtype": "float32",
}
KEYS = [
    f'"{key}": '.encode()
    for key in (
        *CONFIG,
        "rope_scaling",
        "quantization_config",
        "torch_dtype",
        "attention_bias",
        "partial_rotary_factor",
        "logit_scale",
        "sliding_window",
        "dual_chunk_attention_config",
        "rope_theta",
        "use_cache",
        "__metadata__",
    )
]
HEADER_TOKENS = [
    b'"dtype":',
    b'"shape":',
    b'"data_offsets":',
    b'"F32"',
    b'"BF16"',
    b'"I8"',
    b"[0,16]",
    b"[4]",
    b'"model.norm.weight":',
    b"{}",
]


@pytest.fixture
def model(scratch: Path) -> Path:
    """Write a directory with a config.json and the weights that it describes."""
    (scratch / "config.json").write_text(json.dumps(CONFIG))
    (scratch / SINGLE_NAME).write_bytes(weights(read_architecture(scratch)))
    return scratch


def weights(architecture: Architecture) -> bytes:
    """Make a safetensors file of zeros."""
    return save({tensor.name: torch.zeros(tensor.shape) for tensor in hf_tensor_list(architecture)})


def look_at(directory: Path) -> None:
    """Read as a converter does before it writes: shape, headers, every tensor's place, and its bytes."""
    stored = HfDirectory(directory)
    stored.check(read_architecture(directory))
    for name in stored.tensors:
        stored.read(name)
    stored.close()


@fuzz
def test_config_json(seed: int, tally: Tally, model: Path) -> None:
    sound = [json.dumps(CONFIG).encode()]
    for rng in tally.batch(seed):
        content = damaged(rng, sound, KEYS) if rng.random() < 0.9 else of_tokens(rng, KEYS)
        (model / "config.json").write_bytes(content)
        tally.try_input(lambda: look_at(model), content)


@fuzz
def test_safetensors_file(seed: int, tally: Tally, model: Path) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG))
    whole = weights(read_architecture(model))
    size = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + size], whole[8 + size :]
    for rng in tally.batch(seed):
        if rng.random() < 0.2:
            content = damaged(rng, [whole])
        else:  # correct the length, so that the edited header is parsed
            edited = damaged(rng, [header], HEADER_TOKENS)
            content = len(edited).to_bytes(8, "little") + edited + data
        (model / SINGLE_NAME).write_bytes(content)
        tally.try_input(lambda: look_at(model), content)


@fuzz
def test_safetensors_index(seed: int, tally: Tally, model: Path) -> None:
    names = [tensor.name for tensor in hf_tensor_list(read_architecture(model))]
    sound = [
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, SINGLE_NAME)}).encode()
    ]
    tokens = [
        b'"weight_map": ',
        f'"{SINGLE_NAME}"'.encode(),
        b'"../model.safetensors"',
        b'"."',
        b'".."',
        b'""',
        f'"{names[0]}": '.encode(),
    ]
    for rng in tally.batch(seed):
        content = damaged(rng, sound, tokens) if rng.random() < 0.9 else of_tokens(rng, tokens)
        (model / INDEX_NAME).write_bytes(content)
        tally.try_input(lambda: look_at(model), content)


def metadata() -> Metadata:
    """Make the metadata of one sharded tensor and one object."""
    chunks = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([2, 4])) for row in (0, 2)]
    tensor = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size([4, 4]), chunks)
    places = {
        MetadataIndex("w", chunk.offsets): _StorageInfo("__0_0.distcp", 64 * i, 64)
        for i, chunk in enumerate(chunks)
    }
    return Metadata(
        {"w": tensor, "o": BytesStorageMetadata()},
        None,
        places | {MetadataIndex("o"): _StorageInfo("__0_0.distcp", 128, 9)},
    )


@fuzz
def test_checkpoint_metadata(seed: int, tally: Tally, scratch: Path) -> None:
    sound = [pickle.dumps(metadata(), protocol) for protocol in (2, 4)]
    tokens = [
        b"ctorch\nload\n",
        b"ctorch.distributed.checkpoint.filesystem\n_get_device_module\n",
        b"(",
        b"t",
        b"R",
        b"b",
        b"\x94",
        b"0",
        b".",
        b"}",
    ]
    tokens += [
        b"u",
        b"s",
        b"l",
        b"a",
        b"N",
        b"K\x01",
        b"\x8c\x01w",
        b"\x93",
        b"\x81",
        b"X\x03\x00\x00\x00../",
        b"V../x\n",
        b"h\x00",
        b"e",
        b"2",
    ]
    for rng in tally.batch(seed):
        content = damaged(rng, sound, tokens, most=3)
        (scratch / METADATA_NAME).write_bytes(content)
        tally.try_input(lambda: read_metadata(scratch), content)


@fuzz
def test_checkpoint_values(seed: int, tally: Tally, scratch: Path) -> None:
    file = io.BytesIO()
    torch.save(
        {
            "common": {"iteration": 3, "weight_version": 4, "rng": torch.zeros(4)},
            "optimizer": {"param_groups": [{"lr": 0.1}]},
        },
        file,
    )
    for rng in tally.batch(seed):
        content = damaged(rng, [file.getvalue()], [b"ctorch\nload\n", b"R", b"PK\x03\x04"], most=3)
        (scratch / COMMON_NAME).write_bytes(content)
        tally.try_input(lambda: read_common(scratch), content)


def test_plain_values_that_end_inside_a_number_are_damaged(scratch: Path) -> None:
    """Cut the last number of a file short.

    Found by `make fuzz`: torch's own unpickler takes four bytes even if fewer are left.
    """
    with zipfile.ZipFile(scratch / COMMON_NAME, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02J\x01")
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        read_common(scratch)
