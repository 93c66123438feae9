"""Test that the models of a study keep equal tensors once, and are the same models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfemo.weights.hf_directory import HfDirectory
from tools.study.tensors import keep_once


def write_model(path: Path, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    path.mkdir(parents=True)
    frozen, trained = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16)
    tensors = {"layers.0.weight": frozen, "layers.1.weight": trained, **changed}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return tensors


def test_equal_tensors_are_one_file_and_every_model_reads_as_before(tmp_path: Path) -> None:
    store, models = tmp_path / "tensors", [tmp_path / name / "model" for name in ("start", "grpo")]
    written = [write_model(models[0]), write_model(models[1], **{"layers.1.weight": torch.zeros(4)})]
    for model in models:
        keep_once(model, store)
    assert len(list(store.iterdir())) == 3, "the frozen one is both's"
    for model, tensors in zip(models, written, strict=True):
        assert not (model / "model.safetensors").exists()
        read = HfDirectory(model)
        assert set(read.tensors) == set(tensors)
        assert all(torch.equal(read.read(name), tensor) for name, tensor in tensors.items())
        assert all(read.read(name).dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_model_that_was_cut_short_or_done_before_is_kept(tmp_path: Path) -> None:
    store, model = tmp_path / "tensors", tmp_path / "model"
    tensors = write_model(model)
    (model / "layers.0.weight.safetensors").write_bytes(b"half")  # of an earlier try
    keep_once(model, store)
    keep_once(model, store)
    assert {name: HfDirectory(model).read(name).tolist() for name in tensors} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_models_of_one_name_that_end_together_do_not_meet_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the second seed's model keep a tensor while the first one's is written but not renamed yet."""
    store, models = tmp_path / "tensors", [tmp_path / seed / "grpo" / "model" for seed in ("1", "2")]
    tensors, _ = [write_model(model) for model in models]
    rename, others = os.replace, models[1:]

    def rename_later(source: Path, target: Path) -> None:
        if others:
            keep_once(others.pop(), store)
        rename(source, target)

    monkeypatch.setattr("tools.study.tensors.os.replace", rename_later)
    keep_once(models[0], store)
    for model in models:
        assert {name: HfDirectory(model).read(name).tolist() for name in tensors} == {
            name: tensor.tolist() for name, tensor in tensors.items()
        }
        assert not list(model.glob("*.tmp"))
    assert all(path.suffix == ".safetensors" for path in store.iterdir())
