"""Test that the demo's model is made once, from the package that set-up installs, or again if damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tools.gguf_to_hf
from tools.demo_model import CHAT_TEMPLATE, WEIGHTS, demo_model, gguf_file, is_whole


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model" / WEIGHTS
    path.parent.mkdir()
    save_file({"a": torch.ones(3, 2), "b": torch.ones(5)}, path)
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Stand in for the conversion, which takes half a minute: keeps what it was asked for."""
    calls = []

    def convert(gguf: Path, output: Path, layers: int, chat_template: str) -> None:
        calls.append((gguf, chat_template))
        output.mkdir()
        save_file({"a": torch.zeros(2)}, output / WEIGHTS)

    monkeypatch.setattr(tools.gguf_to_hf, "convert", convert)
    return calls


def test_set_up_has_installed_a_gguf_file():
    with gguf_file().open("rb") as file:
        assert file.read(4) == b"GGUF"


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_a_file_that_was_cut_is_not_whole(weights, keep):
    assert is_whole(weights)
    content = weights.read_bytes()
    weights.write_bytes(content[:keep])
    assert not is_whole(weights)


@pytest.mark.parametrize("header", [b"\xff" * 16, b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"{}"])
def test_a_file_of_something_else_is_not_whole(weights, header):
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    assert not is_whole(weights)


def test_a_whole_model_is_kept_and_a_damaged_one_made_again(weights, made, capsys):
    demo_model(weights.parent)
    assert (made, "made earlier" in capsys.readouterr().out) == ([], True)
    weights.write_bytes(weights.read_bytes()[:-1])
    demo_model(weights.parent)
    assert made == [(gguf_file(), CHAT_TEMPLATE)]
    assert "damaged" in capsys.readouterr().out
    assert is_whole(weights)


def test_a_model_that_is_missing_is_made(tmp_path, made):
    demo_model(tmp_path / "model")
    assert len(made) == 1


@pytest.mark.long
def test_the_template_is_the_models_own_without_the_system_message(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(gguf_file().parent, gguf_file=gguf_file().name)
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}

    def rendered(*messages: dict[str, str], template: str | None = None) -> str:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, chat_template=template
        )

    assert rendered(system, user, template=CHAT_TEMPLATE) == rendered(system, user)
    ours = rendered(user, template=CHAT_TEMPLATE)
    assert rendered(user).endswith(ours)
    assert "system" not in ours


@pytest.mark.slow
def test_a_model_that_is_cut_keeps_its_lowest_layers_and_predicts_text_with_them(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tools.gguf_to_hf.convert(gguf_file(), whole)
    tools.gguf_to_hf.convert(gguf_file(), cut, layers=9)
    of_whole, of_cut = (load_file(path / WEIGHTS) for path in (whole, cut))
    assert of_cut.pop("lm_head.weight").shape == of_whole["model.embed_tokens.weight"].shape
    assert {name.split(".")[2] for name in of_cut if name.startswith("model.layers.")} == set("012345678")
    assert all(tensor.equal(of_whole[name]) for name, tensor in of_cut.items())
    text = "When I came home last night, the door was open and the kitchen light was on."
    ids = torch.tensor([AutoTokenizer.from_pretrained(whole).encode(text)])
    losses = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids, labels=ids).loss.item()
        for path in (whole, cut)
    ]
    assert losses[1] < losses[0] + 2.5  # a head of zeros: 10.8 nats
