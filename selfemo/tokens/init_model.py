"""Initialise a small Qwen3 with random weights and its own tokenizer, as one Hugging Face directory.

The demo starts from it. transformers and vLLM load it unchanged, so the rest of the code treats it
like a download.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_seed
from selfemo.config.schema import ModelConfig
from selfemo.tokens.training import END_OF_TEXT, TURN_END, save_tokenizer, train_tokenizer

ROPE_THETA = 1e6
"""Base of the rotary embedding, as in Qwen3."""


def init_model(output_dir: str | Path, config: ModelConfig, texts: Iterable[str], seed: int) -> Path:
    """Write the model and its tokenizer to `output_dir`; the same arguments give the same bytes of weights.

    The vocabulary is the tokenizer's, which is smaller than config.vocab_size if the texts are few:
    an embedding row without a token could be sampled and would decode to nothing.

    Args:
        output_dir: must not exist, or be an empty directory.
        texts: the texts the tokenizer is trained on; only the training split, so that nothing of
            dev or test is seen.
        seed: the run's seed.

    Returns:
        The directory.

    Raises:
        UserError: the directory is not empty; heads do not divide; the vocabulary is too small.
    """
    target = Path(output_dir)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            f"{target}: exists and is not an empty directory: choose another output directory or remove it"
        )
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"model.num_heads={config.num_heads}: expected a multiple of "
            f"model.num_kv_heads={config.num_kv_heads}"
        )
    tokenizer = train_tokenizer(texts, config.vocab_size)
    end_id, pad_id = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    hf_config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_length,
        rope_theta=ROPE_THETA,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        dtype="float32",
    )
    # transformers draws from the process-wide generator: restore its state afterwards
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init_model"))
        model = Qwen3ForCausalLM(hf_config).to(torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=[end_id, pad_id], pad_token_id=pad_id, bos_token_id=None
    )

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        model.save_pretrained(partial)
        save_tokenizer(tokenizer, partial, config.max_length)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors and mkdtemp create private files
        partial.chmod(0o755)
        os.replace(partial, target)  # replaces nothing or an empty directory
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
