"""Test that a new family is one file: config, layouts, Megatron and both converters find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import selfemo.models.families as package
from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig
from selfemo.models.architecture import read_architecture
from selfemo.models.family import families
from selfemo.weights.convert import hf_to_megatron, megatron_to_hf
from tests.helpers.distributed import DistributedRunner
from tests.helpers.packed_logits import TOLERANCE, logits, sequences
from tests.helpers.tiny_model import save_one_word_tokenizer, tiny_model

SOURCE = '''
"""Mistral without a sliding window."""

from selfemo.models.families.llama import RULES
from selfemo.models.family import Family

FAMILY = Family(
    name="mistral", hf_architecture="MistralForCausalLM", rules=RULES, required={"sliding_window": None}
)
'''


@pytest.fixture
def family_dir(tmp_path: Path) -> Path:
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "mistral.py").write_text(SOURCE)
    return tmp_path / "families"


@contextmanager
def _dropped_in(family_dir: Path) -> Iterator[None]:
    """Put the file into the package's directory, as far as this process can see."""
    package.__path__.append(str(family_dir))
    families.cache_clear()
    try:
        yield
    finally:
        package.__path__.remove(str(family_dir))
        families.cache_clear()


def _model(directory: Path, **settings: object) -> tuple[Path, torch.Tensor]:
    """Write a random Mistral; returns its directory and its logits."""
    model = tiny_model("mistral", tied=False, layers=4)
    model.config.sliding_window = None
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.save_pretrained(directory)
    save_one_word_tokenizer(directory)
    with torch.no_grad():
        return directory, torch.cat([model(torch.tensor([ids[:-1]])).logits[0] for ids in sequences()])


def test_it_is_unknown_until_the_file_is_there(tmp_path: Path, family_dir: Path) -> None:
    source, _ = _model(tmp_path / "model")
    with pytest.raises(UserError, match="'MistralForCausalLM' is not supported"):
        read_architecture(source)
    with _dropped_in(family_dir):
        assert read_architecture(source).family == "mistral"
        with pytest.raises(UserError, match="sliding_window=64 is not implemented for mistral"):
            read_architecture(_model(tmp_path / "sliding", sliding_window=64)[0])


def test_both_converters_take_it(tmp_path: Path, family_dir: Path) -> None:
    source, _ = _model(tmp_path / "model")
    with _dropped_in(family_dir):
        hf_to_megatron(source, tmp_path / "megatron", lambda _name, _bytes: None, verify=True)
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", lambda _name, _bytes: None, verify=True)
    want, got = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "back"))
    assert want.keys() == got.keys()
    assert all(tensor.equal(got[name]) for name, tensor in want.items())


def _logits(hf_dir: str, parallel: ParallelConfig, family_dir: str) -> torch.Tensor:
    with _dropped_in(Path(family_dir)):
        return logits(hf_dir, parallel)


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(tensor=2), ParallelConfig(pipeline=2)], ids=["tp2", "pp2"]
)
def test_megatron_computes_its_logits(
    distributed: DistributedRunner, tmp_path: Path, family_dir: Path, parallel: ParallelConfig
) -> None:
    source, want = _model(tmp_path / "model")
    for got in distributed(2, _logits, str(source), parallel, str(family_dir)):
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
