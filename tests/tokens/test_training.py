"""Test the trained tokenizer and the initialised model: deterministic, loadable by transformers
alone, written whole.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from selfemo.common.errors import UserError
from selfemo.config.schema import ModelConfig
from selfemo.tokens import init_model as init_module
from selfemo.tokens.encoder import ChatEncoder, Message
from selfemo.tokens.init_model import init_model
from selfemo.tokens.training import MIN_VOCAB_SIZE, train_tokenizer

TEXTS = (
    "You came! I can't believe it.",
    "Why would I not come, Joey?",
    "It's 3 o'clock and I am so happy.",
) * 5
TINY = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_length=128,
)


def test_training_is_deterministic_and_fills_the_vocabulary() -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    assert tokenizer.to_str() == train_tokenizer(iter(TEXTS), 320).to_str()
    assert tokenizer.get_vocab_size() == 320
    assert [
        tokenizer.token_to_id(t)
        for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
    ] == [0, 1, 2, 318, 319]
    assert tokenizer.encode("user\n").ids == [tokenizer.token_to_id("user"), tokenizer.token_to_id("\u010a")]


def test_training_on_little_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_tokenizer(["ab"], 4096)
    assert MIN_VOCAB_SIZE < tokenizer.get_vocab_size() < 320
    with pytest.raises(UserError, match=r"model\.vocab_size=260: expected at least 261"):
        train_tokenizer(TEXTS, 260)


@pytest.mark.parametrize("tied", [True, False])
def test_the_directory_loads_with_transformers_alone(tmp_path: Path, tied: bool) -> None:
    path = init_model(tmp_path / "m", dataclasses.replace(TINY, tie_word_embeddings=tied), TEXTS, seed=3)
    model: Any = AutoModelForCausalLM.from_pretrained(str(path))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) == 320
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    generation = GenerationConfig.from_pretrained(str(path))
    assert generation.eos_token_id == [2, 0]
    encoder = ChatEncoder(path)
    assert encoder.end_of_turn_ids == (2, 0)
    prompt = torch.tensor([encoder.encode_prompt([Message("user", "You came!")])])
    assert model(prompt).logits.shape == (1, prompt.shape[1], 320)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = init_model(tmp_path / "one", TINY, TEXTS, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    same = init_model(tmp_path / "same", TINY, TEXTS, seed=3)
    other = init_model(tmp_path / "other", TINY, TEXTS, seed=4)
    for file in one.iterdir():
        assert file.read_bytes() == (same / file.name).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_an_occupied_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty directory"):
        init_model(tmp_path, TINY, TEXTS, seed=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert init_model(tmp_path / "empty", TINY, TEXTS, seed=1).is_dir()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(init_module, "save_tokenizer", disk_full)
    with pytest.raises(OSError, match="disk full"):
        init_model(tmp_path / "m", TINY, TEXTS, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_heads_must_divide(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.num_heads=4: expected a multiple of model\.num_kv_heads=3"):
        init_model(tmp_path / "m", dataclasses.replace(TINY, num_kv_heads=3), TEXTS, seed=1)
