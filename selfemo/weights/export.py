"""Write a Hugging Face directory: weights, config, tokenizer, chat template.

transformers and `vllm serve` load it without changes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from selfemo.common.errors import UserError
from selfemo.common.json_file import read_json_object
from selfemo.common.pending import new_directory
from selfemo.models.architecture import CONFIG_NAME, DTYPE_BYTES, Architecture, hf_config, read_architecture
from selfemo.models.parameters import hf_tensor_list
from selfemo.weights.safetensors_writer import DEFAULT_SHARD_BYTES, SafetensorsWriter

TOKENIZER_NAME = "tokenizer.json"
"""The one required companion: this project reads the tokenizer from it, and engines look for it
first.
"""
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
COMPANION_NAMES = (
    "generation_config.json",
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that are copied beside the weights if the source has them."""
MISNAMED_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
"""Classes that transformers 5 builds anew, without the splitting of tokenizer.json: of a byte-level BPE,
which every tokenizer here is, blanks are lost. DeepSeek-R1-Distill names one, and is excepted by its path on
the hub, which an exported directory does not have.
"""


def save_hf(
    output_dir: str | Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    architecture: Architecture,
    source_dir: str | Path,
    dtype: str = "",
    write: bool = True,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a model directory, under a temporary name until it is complete.

    Args:
        tensors: (Hugging Face name, whole tensor), each tensor of the architecture exactly once, in
            any order.
        source_dir: the directory that config.json, tokenizer files, chat template and generation
            config are copied from; if it has no config.json, one is written from the architecture.
        dtype: dtype of the written weights; empty keeps the architecture's.
        write: False only exhausts `tensors`, for the ranks of a collective iterator that do not
            write.

    Raises:
        UserError: the output exists, the disk is full, or the source describes another
            architecture; names the path.
    """
    if not write:
        for _ in tensors:
            pass
        return
    dtype = dtype or architecture.dtype
    if dtype not in DTYPE_BYTES:
        raise UserError(
            f"{output_dir}: dtype {dtype!r} cannot be written; expected one of {', '.join(DTYPE_BYTES)}"
        )
    declared = hf_tensor_list(architecture)
    torch_dtype = getattr(torch, dtype)
    needed_bytes = sum(tensor.elements for tensor in declared) * torch_dtype.itemsize
    with new_directory(output_dir, needed_bytes) as pending:
        copy_companions(Path(source_dir), pending, architecture, dtype)
        writer = SafetensorsWriter(pending, declared, [torch_dtype] * len(declared), max_shard_bytes)
        for name, tensor in tensors:
            writer.write(name, tensor)
        writer.finish()


def copy_companions(source: Path, target: Path, architecture: Architecture, dtype: str) -> None:
    """Copy config and tokenizer files.

    The config's dtype is set to that of the weights; its other fields stay.

    Raises:
        UserError: the source's config.json describes another architecture, or it has no tokenizer.
    """
    if not source.is_dir():
        raise UserError(
            f"{source}: no such directory; expected the model directory whose tokenizer and config go "
            "with the weights"
        )
    if not (source / TOKENIZER_NAME).is_file():
        raise UserError(
            f"{source}: no file {TOKENIZER_NAME}; the model's tokenizer goes with its weights: copy it there"
        )
    config = hf_config(architecture)
    if (source / CONFIG_NAME).exists():
        found = read_architecture(source)
        for field in dataclasses.fields(Architecture):
            here, there = getattr(architecture, field.name), getattr(found, field.name)
            if field.name != "dtype" and here != there:
                raise UserError(
                    f"{source / CONFIG_NAME}: {field.name} is {there!r}, but the weights have {here!r}: "
                    "another model's directory"
                )
        config = read_json_object(source / CONFIG_NAME)
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = dtype
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COMPANION_NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    _name_tokenizer_class(source / TOKENIZER_CONFIG_NAME, target / TOKENIZER_CONFIG_NAME)


def _name_tokenizer_class(source: Path, target: Path) -> None:
    """Have transformers read tokenizer.json as it stands, as training did."""
    fields = read_json_object(source) if source.is_file() else {}
    if fields.get("tokenizer_class") in MISNAMED_CLASSES:
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
        target.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
