"""Test that converters name a bad source, checkpoint or output, and leave nothing behind."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfemo.common.errors import UserError
from selfemo.models.architecture import read_architecture
from selfemo.weights.convert import compare, hf_to_megatron, megatron_to_hf
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.torch_dist import CheckpointReader
from tests.helpers.conversion import quiet
from tests.helpers.tiny_model import save_tiny

MLP = "model.layers.1.mlp.up_proj.weight"


def _edited(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Make a corruption that edits the shard which holds a certain tensor."""

    def apply(directory: Path) -> None:
        file = next(file for file in directory.glob("*.safetensors") if MLP in load_file(file))
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


def _truncate(directory: Path) -> None:
    file = sorted(directory.glob("*.safetensors"))[2]
    file.write_bytes(file.read_bytes()[:-1])


def _mixture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3MoeForCausalLM"]}))


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (
            _edited(lambda t: t[MLP].__setitem__((3, 5), torch.nan)),
            rf"safetensors: tensor {MLP} holds 1 values that are NaN or infinite",
        ),
        (
            _edited(lambda t: t.pop(MLP)),
            rf"safetensors: tensor {MLP} is missing, though model.safetensors.index.json places it there",
        ),
        (
            _edited(lambda t: t.update(more=torch.zeros(2))),
            r"model-00010-of-00011.safetensors: tensor more is not part of a qwen3 model",
        ),
        (
            _edited(lambda t: t.update({MLP: t[MLP].T.contiguous()})),
            rf"tensor {MLP} has shape \(64, 96\), expected \(96, 64\)",
        ),
        (_truncate, r"model-00003-of-00011.safetensors: truncated"),
        (_mixture, r"'Qwen3MoeForCausalLM' is not supported"),
    ],
    ids=["nan", "missing", "extra", "shape", "truncated-shard", "architecture"],
)
def test_a_bad_source_is_named_and_leaves_nothing(
    tmp_path: Path, corrupt: Callable[[Path], None], message: str
) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True, max_shard_size="60KB")
    corrupt(source)
    with pytest.raises(UserError, match=message):
        hf_to_megatron(source, tmp_path / "megatron", quiet, check_finite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("left", ["nothing", "a directory"])
def test_a_source_without_a_tokenizer_is_refused_both_ways(tmp_path: Path, left: str) -> None:
    checkpoint, source = _converted(tmp_path), tmp_path / "source"
    for directory in (source, checkpoint / "hf"):
        (directory / "tokenizer.json").unlink()
        if left == "a directory":
            (directory / "tokenizer.json").mkdir()
    for convert, given, named in (
        (hf_to_megatron, source, "source"),
        (megatron_to_hf, checkpoint, "megatron/hf"),
    ):
        with pytest.raises(UserError, match=rf"{named}: no file tokenizer.json"):
            convert(given, tmp_path / "again", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "source"]


def _converted(tmp_path: Path) -> Path:
    hf_to_megatron(save_tiny(tmp_path / "source", "qwen3", True), tmp_path / "megatron", quiet)
    return tmp_path / "megatron"


def test_one_wrong_bit_on_either_side_fails_the_verification_by_name(tmp_path: Path) -> None:
    checkpoint, source = _converted(tmp_path), HfDirectory(tmp_path / "source")
    architecture = read_architecture(source.path)
    compare(source, CheckpointReader(checkpoint), architecture, quiet)
    stored, place = source.tensors[MLP], source.tensors[MLP].offset_bytes + 1001
    data = bytearray(stored.path.read_bytes())
    data[place] ^= 1
    stored.path.write_bytes(data)
    with pytest.raises(UserError, match=rf"source: tensor {MLP} differs from \S+megatron"):
        compare(source, CheckpointReader(checkpoint), architecture, quiet)


def test_nan_in_a_checkpoint_is_not_exported(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True)
    _edited(lambda tensors: tensors[MLP].__setitem__((3, 5), torch.inf))(source)
    hf_to_megatron(source, tmp_path / "megatron", quiet)
    with pytest.raises(UserError, match=rf"megatron: tensor {MLP} holds 1 values that are NaN or infinite"):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", quiet, check_finite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "source"]


def test_a_damaged_checkpoint_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    data = checkpoint / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"megatron: tensor decoder\S+ cannot be read \(.*\); the checkpoint is incomplete"
    ):
        megatron_to_hf(checkpoint, tmp_path / "back", quiet)
    data.unlink()
    with pytest.raises(UserError, match=r"cannot be read"):
        megatron_to_hf(checkpoint, tmp_path / "back", quiet)
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    with pytest.raises(UserError, match=r"tensor decoder\S+ has shape \(2, \d+.*\), expected \(3,"):
        megatron_to_hf(
            checkpoint,
            tmp_path / "back",
            quiet,
            source_dir=save_tiny(tmp_path / "deeper", "qwen3", True, layers=3),
        )
    with pytest.raises(UserError, match=r"tensor output_layer.weight is missing from the checkpoint"):
        megatron_to_hf(
            checkpoint, tmp_path / "back", quiet, source_dir=save_tiny(tmp_path / "untied", "qwen3", False)
        )


@pytest.mark.parametrize(
    ("stored", "described", "message"),
    [
        (
            ("qwen2", True),
            ("llama", True),
            r"megatron: 'decoder.layers.self_attention.linear_qkv.bias': no parameter of the model",
        ),
        (
            ("llama", False),
            ("llama", True),
            r"megatron: 'output_layer.weight': no parameter of the model that config.json describes",
        ),
    ],
    ids=["biases", "untied"],
)
def test_a_checkpoint_with_tensors_beyond_the_model_is_refused(
    tmp_path: Path, stored: tuple[str, bool], described: tuple[str, bool], message: str
) -> None:
    """Refuse to export a part of a checkpoint as a smaller model.

    All names and shapes that it expects are there, so that even the verification would pass.
    """
    hf_to_megatron(save_tiny(tmp_path / "source", *stored), tmp_path / "megatron", quiet)
    other = save_tiny(tmp_path / "other", *described)
    with pytest.raises(UserError, match=message):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", quiet, source_dir=other, verify=True)
    with pytest.raises(UserError, match=message):
        compare(HfDirectory(other), CheckpointReader(tmp_path / "megatron"), read_architecture(other), quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "other", "source"]


class _Payload:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("/tmp/selfemo-pickle-ran"),)  # type: ignore[return-value]


def test_metadata_that_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(UserError, match=r".metadata: not checkpoint metadata \(it asks for"):
        megatron_to_hf(checkpoint, tmp_path / "back", quiet)
    assert not Path("/tmp/selfemo-pickle-ran").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [("file/x", "File exists"), ("file/x/y", "Not a directory"), ("n" * 250, "File name too long")],
)
def test_an_output_that_cannot_be_made_is_one_line(tmp_path: Path, output: str, reason: str) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{output}: cannot be written \({reason}\)"):
        hf_to_megatron(source, tmp_path / output, quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "source"]


def test_an_output_in_proc_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/proc/x/y: cannot be written \(No such file or directory\)"):
        hf_to_megatron(save_tiny(tmp_path / "source", "qwen3", True), "/proc/x/y", quiet)


@contextmanager
def _small_disk(file_bytes: int) -> Iterator[None]:
    """Limit the size of files.

    Writes fail where they fail on a full disk, with an error of the same kind.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    for convert, source in ((hf_to_megatron, tmp_path / "source"), (megatron_to_hf, checkpoint)):
        with (
            _small_disk(100 * 1024),
            pytest.raises(UserError, match=r"again: cannot be written \(File too large\); free space"),
        ):
            convert(source, tmp_path / "again", quiet)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "source"]
