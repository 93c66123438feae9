"""Test converters: bitwise round trips, checkpoints of megatron-core in other layouts, and the commands."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from safetensors.torch import load_file, save_file

from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig
from selfemo.models.architecture import read_architecture
from selfemo.weights.convert import compare, hf_to_megatron, megatron_to_hf
from selfemo.weights.gather import hf_tensors
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.load import load_hf_weights
from selfemo.weights.torch_dist import CheckpointReader
from tests.helpers.distributed import ROOT, DistributedRunner
from tests.helpers.megatron_rank import megatron_chunks, weight_groups
from tests.helpers.tiny_model import save_tiny

SMALL_BUCKET = 3000
"""Bytes; cuts every matrix into many pieces."""
MLP = "model.layers.1.mlp.up_proj.weight"


def _quiet(_name: str, _bytes: int) -> None:
    pass


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def _assert_same_bits(want: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> None:
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert tensor.dtype == got[name].dtype, name
        assert torch.equal(tensor, got[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "tied", "max_shard_size"),
    [("qwen3", True, "60KB"), ("qwen2", False, "5GB"), ("llama", True, "5GB")],
)
def test_there_and_back_is_bitwise_equal_in_order_and_dtype(
    tmp_path: Path, family: str, tied: bool, max_shard_size: str, dtype: torch.dtype
) -> None:
    source = save_tiny(tmp_path / "source", family, tied, dtype, max_shard_size)
    (source / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    hf_to_megatron(
        source, tmp_path / "megatron", _quiet, verify=True, check_finite=True, bucket_bytes=SMALL_BUCKET
    )
    done = megatron_to_hf(
        tmp_path / "megatron",
        tmp_path / "back",
        _quiet,
        verify=True,
        check_finite=True,
        max_shard_bytes=60_000,
    )
    _assert_same_bits(_weights(source), _weights(tmp_path / "back"))
    assert done.bytes == sum(tensor.nbytes for tensor in _weights(source).values())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((source / name).read_text())


def test_tensors_of_mixed_dtype_keep_theirs(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True, torch.bfloat16)
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in _weights(source).items()}
    save_file(mixed, source / "model.safetensors")
    hf_to_megatron(source, tmp_path / "megatron", _quiet)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", _quiet)
    _assert_same_bits(mixed, _weights(tmp_path / "back"))
    mixed["model.layers.0.self_attn.k_proj.weight"] = mixed["model.layers.0.self_attn.k_proj.weight"].float()
    save_file(mixed, source / "model.safetensors")
    with pytest.raises(
        UserError, match=r"k_proj.weight \(torch.float32\).* are fused in Megatron and must have one dtype"
    ):
        hf_to_megatron(source, tmp_path / "again", _quiet)


def _megatron_loads(checkpoint: str, hf_dir: str, parallel: ParallelConfig) -> list[str]:
    """Load a converted checkpoint with megatron-core; returns names of gathered tensors that differ
    from the file.
    """
    stored = load_file(Path(hf_dir) / "model.safetensors")
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout):
        state = {f"model{index}": chunk.sharded_state_dict() for index, chunk in enumerate(chunks)}
        loaded = dist_checkpointing.load(state, checkpoint)
        for index, chunk in enumerate(chunks):
            chunk.load_state_dict(loaded[f"model{index}"])
        gathered = hf_tensors(chunks, architecture, weight_groups(layout), 1 << 20)
        return [name for name, tensor in gathered if not torch.equal(tensor, stored[name])]


@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(tensor=2), ParallelConfig(pipeline=2), ParallelConfig(pipeline=2, virtual_pipeline=2)],
    ids=["tp2", "pp2", "pp2vpp2"],
)
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen2", False)])
def test_megatron_loads_a_converted_checkpoint_in_any_layout(
    distributed: DistributedRunner, tmp_path: Path, family: str, tied: bool, parallel: ParallelConfig
) -> None:
    source = save_tiny(tmp_path / "source", family, tied, layers=4)
    hf_to_megatron(source, tmp_path / "megatron", _quiet, bucket_bytes=SMALL_BUCKET)
    assert distributed(2, _megatron_loads, str(tmp_path / "megatron"), str(source), parallel) == [[], []]


def _megatron_saves(checkpoint: str, hf_dir: str, parallel: ParallelConfig) -> None:
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.tensor_size)
        if dist.get_rank() == 0:
            Path(checkpoint).mkdir()
        dist.barrier()
        model = chunks[0].sharded_state_dict()
        tensors = {name: entry for name, entry in model.items() if not isinstance(entry, ShardedObject)}
        moments = {
            name: make_sharded_optimizer_tensor(t, t.data, "optimizer.state.exp_avg")
            for name, t in tensors.items()
        }
        dist_checkpointing.save(
            {"model": model, "optimizer": moments, "common": {"iteration": 3}}, checkpoint
        )
        dist.barrier()


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(tensor=2), ParallelConfig(pipeline=2)], ids=["tp2", "pp2"]
)
def test_a_checkpoint_that_megatron_saved_in_a_layout_is_exported_without_optimizer_state(
    distributed: DistributedRunner, tmp_path: Path, parallel: ParallelConfig
) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True, layers=4)
    distributed(2, _megatron_saves, str(tmp_path / "megatron"), str(source), parallel)
    with pytest.raises(
        UserError, match=r"name the directory that has the model's config and tokenizer with --source"
    ):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", _quiet)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", _quiet, source_dir=source, verify=True)
    _assert_same_bits(_weights(source), _weights(tmp_path / "back"))


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
        hf_to_megatron(source, tmp_path / "megatron", _quiet, check_finite=True)
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
            convert(given, tmp_path / "again", _quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "source"]


def _converted(tmp_path: Path) -> Path:
    hf_to_megatron(save_tiny(tmp_path / "source", "qwen3", True), tmp_path / "megatron", _quiet)
    return tmp_path / "megatron"


def test_one_wrong_bit_on_either_side_fails_the_verification_by_name(tmp_path: Path) -> None:
    checkpoint, source = _converted(tmp_path), HfDirectory(tmp_path / "source")
    architecture = read_architecture(source.path)
    compare(source, CheckpointReader(checkpoint), architecture, _quiet)
    stored, place = source.tensors[MLP], source.tensors[MLP].offset_bytes + 1001
    data = bytearray(stored.path.read_bytes())
    data[place] ^= 1
    stored.path.write_bytes(data)
    with pytest.raises(UserError, match=rf"source: tensor {MLP} differs from \S+megatron"):
        compare(source, CheckpointReader(checkpoint), architecture, _quiet)


def test_nan_in_a_checkpoint_is_not_exported(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True)
    _edited(lambda tensors: tensors[MLP].__setitem__((3, 5), torch.inf))(source)
    hf_to_megatron(source, tmp_path / "megatron", _quiet)
    with pytest.raises(UserError, match=rf"megatron: tensor {MLP} holds 1 values that are NaN or infinite"):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", _quiet, check_finite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "source"]


def test_a_damaged_checkpoint_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    data = checkpoint / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"megatron: tensor decoder\S+ cannot be read \(.*\); the checkpoint is incomplete"
    ):
        megatron_to_hf(checkpoint, tmp_path / "back", _quiet)
    data.unlink()
    with pytest.raises(UserError, match=r"cannot be read"):
        megatron_to_hf(checkpoint, tmp_path / "back", _quiet)
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    with pytest.raises(UserError, match=r"tensor decoder\S+ has shape \(2, \d+.*\), expected \(3,"):
        megatron_to_hf(
            checkpoint,
            tmp_path / "back",
            _quiet,
            source_dir=save_tiny(tmp_path / "deeper", "qwen3", True, layers=3),
        )
    with pytest.raises(UserError, match=r"tensor output_layer.weight is missing from the checkpoint"):
        megatron_to_hf(
            checkpoint, tmp_path / "back", _quiet, source_dir=save_tiny(tmp_path / "untied", "qwen3", False)
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
    """Refuse it: all expected names and shapes are there, so that an export would be a smaller
    model, and verified.
    """
    hf_to_megatron(save_tiny(tmp_path / "source", *stored), tmp_path / "megatron", _quiet)
    other = save_tiny(tmp_path / "other", *described)
    with pytest.raises(UserError, match=message):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", _quiet, source_dir=other, verify=True)
    with pytest.raises(UserError, match=message):
        compare(HfDirectory(other), CheckpointReader(tmp_path / "megatron"), read_architecture(other), _quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "other", "source"]


class _Payload:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("/tmp/selfemo-pickle-ran"),)  # type: ignore[return-value]


def test_metadata_that_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    checkpoint = _converted(tmp_path)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(UserError, match=r".metadata: not checkpoint metadata \(it asks for"):
        megatron_to_hf(checkpoint, tmp_path / "back", _quiet)
    assert not Path("/tmp/selfemo-pickle-ran").exists()


def _command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, capture_output=True, timeout=600
    )


def test_the_commands_convert_there_and_back(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True, torch.bfloat16)
    there = _command(
        "tools/hf_to_megatron.py",
        "--source",
        source,
        "--output",
        tmp_path / "megatron",
        "--verify",
        "--check-finite",
    )
    assert (there.returncode, there.stderr) == (0, "")
    assert "24 tensors" in there.stdout
    assert "every tensor verified bitwise" in there.stdout
    export = ("tools/megatron_to_hf.py", "--checkpoint", tmp_path / "megatron", "--output", tmp_path / "back")
    back = _command(*export, FORCE_COLOR="1", COLUMNS="200")  # rich takes it for a terminal
    assert back.returncode == 0
    _assert_same_bits(_weights(source), _weights(tmp_path / "back"))
    bar = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", back.stderr)
    size = sum(tensor.nbytes for tensor in _weights(source).values()) / 1000
    assert f"{size:.1f}/{size:.1f} kB" in bar
    assert "model.norm.weight" in bar
    again = _command(*export)
    assert again.returncode == 2
    assert again.stderr == f"error: {tmp_path / 'back'}: exists already; choose another output or remove it\n"


@pytest.mark.parametrize(
    ("output", "reason"),
    [("file/x", "File exists"), ("file/x/y", "Not a directory"), ("n" * 250, "File name too long")],
)
def test_an_output_that_cannot_be_made_is_one_line(tmp_path: Path, output: str, reason: str) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{output}: cannot be written \({reason}\)"):
        hf_to_megatron(source, tmp_path / output, _quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "source"]


def test_an_output_in_proc_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/proc/x/y: cannot be written \(No such file or directory\)"):
        hf_to_megatron(save_tiny(tmp_path / "source", "qwen3", True), "/proc/x/y", _quiet)


@contextmanager
def _small_disk(file_bytes: int) -> Iterator[None]:
    """Limit the size of files: writes fail where they fail on a full disk, with an error of the
    same kind.
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
            convert(source, tmp_path / "again", _quiet)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron", "source"]


MEASURE = """
import sys
from pathlib import Path
from selfemo.weights.convert import hf_to_megatron, megatron_to_hf

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

source, megatron, back, warm = sys.argv[1:]
quiet = lambda name, count: None
hf_to_megatron(warm, megatron + "-warm", quiet)
megatron_to_hf(megatron + "-warm", back + "-warm", quiet)
begin = peak_bytes()
hf_to_megatron(source, megatron, quiet, verify=True, bucket_bytes=1 << 20)
there = peak_bytes()
megatron_to_hf(megatron, back, quiet, verify=True)
print(there - begin, peak_bytes() - there)
"""
"""Converts a tiny model first, so that libraries are not counted."""


def test_memory_is_bounded_by_buffers_and_not_by_the_model(tmp_path: Path) -> None:
    shape = {"heads": 64, "kv_heads": 8, "head_dim": 64, "vocab_size": 4096}
    source = save_tiny(tmp_path / "source", "qwen3", True, torch.bfloat16, layers=16, **shape)
    model_bytes = (source / "model.safetensors").stat().st_size
    paths = (source, tmp_path / "megatron", tmp_path / "back", save_tiny(tmp_path / "warm", "qwen3", True))
    measured = _command("-c", MEASURE, *paths)
    assert measured.returncode == 0, measured.stderr
    there_bytes, back_bytes = map(int, measured.stdout.split())
    assert model_bytes > 190e6
    assert there_bytes < 64e6
    assert back_bytes < 64e6
