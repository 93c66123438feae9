"""Write tiny random models of every family by transformers, and shard them by the product's own
placements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from selfemo.models.geometry import Placement, region

VOCAB_SIZE = 131
"""A prime: no tensor-parallel size divides it."""


def tiny_model(
    family: str,
    tied: bool,
    seed: int = 0,
    heads: int = 8,
    kv_heads: int = 4,
    head_dim: int = 24,
    layers: int = 2,
    vocab_size: int = VOCAB_SIZE,
) -> PreTrainedModel:
    """Make a random model whose norms and biases are random too, so that swapping any two tensors
    shows.

    `head_dim` is Qwen3's; the other families divide the hidden size by the heads.
    """
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        hidden_size=8 * heads,
        intermediate_size=12 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **({"head_dim": head_dim} if family == "qwen3" else {}),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return model


def save_tiny(
    directory: Path,
    family: str,
    tied: bool,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **sizes: int,
) -> Path:
    """Write a tiny model as transformers does, and a tokenizer that knows one word.

    Returns the directory.
    """
    tiny_model(family, tied, **sizes).to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    save_one_word_tokenizer(directory)
    return directory


def save_one_word_tokenizer(directory: Path) -> None:
    """Write a tokenizer for code that copies one and never calls it."""
    Tokenizer(WordLevel({"word": 0}, unk_token="word")).save(str(directory / "tokenizer.json"))


def fill_local(local: torch.Tensor, placement: Placement, hf_tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy every box of `placement` from the Hugging Face tensors into `local`.

    Padding is left as it is.
    """
    for box in placement.boxes:
        local[region(box.local_start, box.shape)].copy_(hf_tensors[box.tensor][region(box.start, box.shape)])
