"""Test converters: bitwise round trips, checkpoints of megatron-core, the commands, and memory.

test_convert_refusals.py has the errors.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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
from selfemo.weights.convert import hf_to_megatron, megatron_to_hf
from selfemo.weights.gather import hf_tensors
from selfemo.weights.load import load_hf_weights
from tests.helpers.conversion import quiet
from tests.helpers.distributed import ROOT, DistributedRunner
from tests.helpers.megatron_rank import megatron_chunks, weight_groups
from tests.helpers.tiny_model import save_tiny

SMALL_BUCKET = 3000
"""Bytes; cuts every matrix into many pieces."""


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
        source, tmp_path / "megatron", quiet, verify=True, check_finite=True, bucket_bytes=SMALL_BUCKET
    )
    done = megatron_to_hf(
        tmp_path / "megatron",
        tmp_path / "back",
        quiet,
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
    hf_to_megatron(source, tmp_path / "megatron", quiet)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", quiet)
    _assert_same_bits(mixed, _weights(tmp_path / "back"))
    mixed["model.layers.0.self_attn.k_proj.weight"] = mixed["model.layers.0.self_attn.k_proj.weight"].float()
    save_file(mixed, source / "model.safetensors")
    with pytest.raises(
        UserError, match=r"k_proj.weight \(torch.float32\).* are fused in Megatron and must have one dtype"
    ):
        hf_to_megatron(source, tmp_path / "again", quiet)


def _megatron_loads(checkpoint: str, hf_dir: str, parallel: ParallelConfig) -> list[str]:
    """Load a converted checkpoint with megatron-core.

    Returns names of gathered tensors that differ from the file.
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
    [
        ParallelConfig(tensor=2),
        pytest.param(ParallelConfig(pipeline=2), marks=pytest.mark.slow),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
    ],
    ids=["tp2", "pp2", "pp2vpp2"],
)
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen2", False)])
def test_megatron_loads_a_converted_checkpoint_in_any_layout(
    distributed: DistributedRunner, tmp_path: Path, family: str, tied: bool, parallel: ParallelConfig
) -> None:
    source = save_tiny(tmp_path / "source", family, tied, layers=4)
    hf_to_megatron(source, tmp_path / "megatron", quiet, bucket_bytes=SMALL_BUCKET)
    assert distributed(2, _megatron_loads, str(tmp_path / "megatron"), str(source), parallel) == [[], []]


def _megatron_saves(checkpoint: str, hf_dir: str, parallel: ParallelConfig) -> None:
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
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
    "parallel",
    [pytest.param(ParallelConfig(tensor=2), marks=pytest.mark.long), ParallelConfig(pipeline=2)],
    ids=["tp2", "pp2"],
)
def test_a_checkpoint_that_megatron_saved_in_a_layout_is_exported_without_optimizer_state(
    distributed: DistributedRunner, tmp_path: Path, parallel: ParallelConfig
) -> None:
    source = save_tiny(tmp_path / "source", "qwen3", True, layers=4)
    distributed(2, _megatron_saves, str(tmp_path / "megatron"), str(source), parallel)
    with pytest.raises(
        UserError, match=r"name the directory that has the model's config and tokenizer with --source"
    ):
        megatron_to_hf(tmp_path / "megatron", tmp_path / "back", quiet)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", quiet, source_dir=source, verify=True)
    _assert_same_bits(_weights(source), _weights(tmp_path / "back"))


def _command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, capture_output=True, timeout=600
    )


@pytest.mark.long
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


@pytest.mark.long
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
