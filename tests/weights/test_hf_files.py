"""Read and write model directories: bitwise round trips, and a named error for each kind of damaged
download.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfemo.common.errors import UserError
from selfemo.models.architecture import read_architecture
from selfemo.tokens.training import save_tokenizer, train_tokenizer
from selfemo.weights.export import save_hf
from selfemo.weights.hf_directory import HfDirectory
from tests.helpers.tiny_model import save_tiny

SHARDED = "60KB"
"""Shard size that gives the tiny model several files."""


def _stored(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    source = HfDirectory(directory)
    for name in reversed(source.tensors):  # any order must work
        yield name, source.read(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("read_shards", "write_shard_bytes"), [("5GB", 5 << 30), (SHARDED, 60_000)])
def test_read_and_written_weights_are_bitwise_equal(
    tmp_path: Path, dtype: torch.dtype, read_shards: str, write_shard_bytes: int
) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True, dtype, max_shard_size=read_shards)
    save_hf(
        tmp_path / "out",
        _stored(source),
        read_architecture(source),
        source,
        max_shard_bytes=write_shard_bytes,
    )
    want = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    got = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert (len(files) > 1) == (write_shard_bytes < 1 << 20)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert got[name].dtype == dtype
        assert torch.equal(tensor, got[name]), name


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "qwen2", True)
    (source / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (source / "generation_config.json").write_text('{"eos_token_id": 2}')
    (source / "optimizer.pt").write_bytes(b"not ours")
    save_hf(
        tmp_path / "out",
        _stored(source),
        read_architecture(source),
        source,
        dtype="bfloat16",
        max_shard_bytes=60_000,
    )
    before, after = (
        AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (source, tmp_path / "out")
    )
    assert after.dtype == torch.bfloat16
    for name, parameter in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], parameter.bfloat16()), name
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "optimizer.pt").exists()


def test_transformers_splits_what_is_written_as_tokenizer_json_says(tmp_path: Path) -> None:
    """The class that DeepSeek-R1-Distill-Llama names loses blanks, but in a directory of that name."""
    source = save_tiny(tmp_path / "source", "llama", True)
    save_tokenizer(train_tokenizer(["a plain line of words"] * 4, 300), source, max_length=64)
    settings = source / "tokenizer_config.json"
    named = {"tokenizer_class": "LlamaTokenizerFast"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | named))
    save_hf(tmp_path / "out", _stored(source), read_architecture(source), source)
    text = "a plain line\nof words"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(source).chat_template


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "llama", True)
    tensors = list(_stored(source))
    with pytest.raises(ValueError, match="was never written"):
        save_hf(tmp_path / "out", tensors[1:], read_architecture(source), source)
    with pytest.raises(ValueError, match="was written before"):
        save_hf(tmp_path / "out", [*tensors, tensors[0]], read_architecture(source), source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_output_and_a_foreign_source_are_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "llama", True)
    other = save_tiny(tmp_path / "other", "llama", True, layers=3)
    with pytest.raises(UserError, match=r"source: exists already"):
        save_hf(source, _stored(source), read_architecture(source), source)
    with pytest.raises(UserError, match=r"num_layers is 3, but the weights have 2"):
        save_hf(tmp_path / "out", _stored(source), read_architecture(source), other)
    assert not (tmp_path / "out").exists()


def _rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Make a corruption that edits the tensors of the single file."""

    def apply(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return apply


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


MLP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (_rewrite(lambda t: t.pop(MLP)), rf"tensor {re.escape(MLP)} is missing \(1 of 24 are\)"),
        (
            _rewrite(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(2)})),
            r"tensor model.layers.2.mlp.up_proj.weight is not part",
        ),
        (
            _rewrite(lambda t: t.update({MLP: t[MLP][:-1].clone()})),
            rf"{re.escape(MLP)} has shape \(95, 64\), expected \(96, 64\)",
        ),
        (
            _rewrite(lambda t: t.update({MLP: t[MLP].to(torch.int8)})),
            rf"{re.escape(MLP)} is stored as I8; expected one of F32",
        ),
        (_truncate, r"model.safetensors: truncated or not a safetensors file"),
        (
            lambda directory: (directory / "model.safetensors").unlink(),
            r"no weights; expected model.safetensors or model.safetensors.index.json",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype", "truncated", "none"],
)
def test_bad_files_are_named(tmp_path: Path, corrupt: Callable[[Path], None], message: str) -> None:
    corrupt(save_tiny(tmp_path, "qwen3", True))
    with pytest.raises(UserError, match=message):
        HfDirectory(tmp_path).check(read_architecture(tmp_path))


def test_a_tied_checkpoint_may_store_its_head_and_an_untied_one_must(tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen3", True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    HfDirectory(tmp_path).check(read_architecture(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    HfDirectory(tmp_path).check(read_architecture(tmp_path))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight is missing"):
        HfDirectory(tmp_path).check(read_architecture(tmp_path))


@pytest.mark.parametrize("row", [0, 130])
def test_a_tied_checkpoint_with_a_head_of_its_own_is_refused(tmp_path: Path, row: int) -> None:
    """transformers would untie it; a copy that dropped the head would be another model."""
    save_tiny(tmp_path, "qwen3", True)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[row, -1] += 0.5
    save_file({**tensors, "lm_head.weight": head}, tmp_path / "model.safetensors", {"format": "pt"})
    assert AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight[row, -1] == head[row, -1]
    with pytest.raises(
        UserError,
        match=r"lm_head.weight is not model.embed_tokens.weight of model.safetensors, though config",
    ):
        HfDirectory(tmp_path).check(read_architecture(tmp_path))


def test_one_file_beside_an_index_of_others_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", True, max_shard_size=SHARDED)
    save_tiny(tmp_path / "newer", "llama", True, seed=1)
    (tmp_path / "newer" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"/model\.safetensors: lies beside model\.safetensors\.index\.json, .*model-00001-of"
    ):
        HfDirectory(tmp_path)
    for shard in tmp_path.glob("model-*.safetensors"):
        shard.unlink()
    names = load_file(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    HfDirectory(tmp_path).check(read_architecture(tmp_path))  # one truth in two files


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    """transformers would add it, or load the model that it names, if peft is installed."""
    save_tiny(tmp_path, "llama", True)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    with pytest.raises(UserError, match=r"holds adapter_config\.json; an adapter is not read: merge it"):
        HfDirectory(tmp_path)


def _edit_index(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", True, max_shard_size=SHARDED)
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    HfDirectory(tmp_path).check(read_architecture(tmp_path))
    _edit_index(
        tmp_path,
        lambda weight_map: weight_map.update(
            {MLP: first.name if weight_map[MLP] != first.name else last.name}
        ),
    )
    with pytest.raises(
        UserError, match=rf"{re.escape(MLP)} is missing, though model.safetensors.index.json places it there"
    ):
        HfDirectory(tmp_path)
    _edit_index(tmp_path, lambda weight_map: weight_map.update({MLP: "../elsewhere.safetensors"}))
    with pytest.raises(UserError, match=r"expected a file in the same directory"):
        HfDirectory(tmp_path)
    last.unlink()
    _edit_index(tmp_path, lambda weight_map: weight_map.pop(MLP))
    with pytest.raises(UserError, match=rf"{last.name}: no such file"):
        HfDirectory(tmp_path)
