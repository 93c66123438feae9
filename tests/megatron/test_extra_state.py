"""Load checkpoints into modules with an extra state, as Transformer Engine's have, and plant code there.

Transformer Engine's modules return an empty tensor where there is no FP8, and unpickle the bytes of one
that is not (2.11, pytorch/module/base.py and pytorch/ops/op.py, `set_extra_state`). So does an RMSNorm here.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig
from selfemo.megatron import layer_spec
from selfemo.megatron.checkpoint import TensorWrite, read_tensors
from selfemo.weights.convert import hf_to_megatron
from selfemo.weights.metadata_pickle import read_metadata
from tests.helpers.conversion import quiet
from tests.helpers.parity import learner
from tests.helpers.tiny_model import save_tiny

ONE = ParallelConfig()


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._path,)


class StatefulNorm(layer_spec.RMSNorm):
    """RMSNorm with Transformer Engine's extra state."""

    written = b""
    """Bytes that the state has when it is written."""

    def get_extra_state(self) -> torch.Tensor:
        return (
            torch.frombuffer(bytearray(self.written), dtype=torch.uint8) if self.written else torch.empty(0)
        )

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        if state is not None and state.numel():
            pickle.loads(state.detach().numpy(force=True).tobytes())


@contextmanager
def stateful_norms(written: bytes = b"") -> Iterator[None]:
    plain, StatefulNorm.written = layer_spec.RMSNorm, written
    layer_spec.RMSNorm = StatefulNorm
    try:
        yield
    finally:
        layer_spec.RMSNorm, StatefulNorm.written = plain, b""


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("extra") / "model", "qwen3", True)


def _write(hf_dir: str, directory: str, stateful: bool, written: bytes) -> None:
    Path(directory).mkdir()
    if stateful:
        with stateful_norms(written), learner(hf_dir, ONE) as model:
            TensorWrite(model, Path(directory), {}, weights_only=True)
    else:
        with learner(hf_dir, ONE) as model:
            TensorWrite(model, Path(directory), {}, weights_only=True)


def _read(directory: str, other_dir: str) -> dict[str, torch.Tensor]:
    """Read into a model of other weights whose norms have an extra state."""
    with stateful_norms(), learner(other_dir, ONE) as model:
        read_tensors(model, Path(directory), weights_only=True)
        return {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}


def _weights(hf_dir: str) -> dict[str, torch.Tensor]:
    with learner(hf_dir, ONE) as model:
        return {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}


@pytest.mark.parametrize("stateful", [False, True], ids=["written without it", "written with it"])
def test_a_model_with_extra_states_loads_a_checkpoint(distributed, hf_dir, tmp_path, stateful):
    other = save_tiny(tmp_path / "other", "qwen3", True, seed=1)
    distributed(1, _write, str(hf_dir), str(tmp_path / "written"), stateful, b"", timeout_s=240)
    found = distributed(1, _read, str(tmp_path / "written"), str(other), timeout_s=240)[0]
    wanted = distributed(1, _weights, str(hf_dir), timeout_s=240)[0]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_code_in_the_bytes_of_a_tensor_does_not_run(distributed, hf_dir, tmp_path):
    """Write a uint8 tensor as extra state: it passes every check for plain values."""
    planted = pickle.dumps(_Touch(tmp_path / "ran"))
    distributed(1, _write, str(hf_dir), str(tmp_path / "written"), True, planted, timeout_s=240)
    distributed(1, _read, str(tmp_path / "written"), str(hf_dir), timeout_s=240)
    assert not (tmp_path / "ran").exists()
    StatefulNorm.set_extra_state(None, torch.frombuffer(bytearray(planted), dtype=torch.uint8))  # type: ignore[arg-type]
    assert (tmp_path / "ran").exists()  # a module that is given the bytes runs them


def _loaded_objects(directory: str, hf_dir: str) -> list[str]:
    """Load as Megatron-LM does, with the extra states of the norms that Transformer Engine's spec has too.

    Its other norms are part of a linear layer.
    """
    with stateful_norms(), learner(hf_dir, ONE) as model:
        state = model.chunks[0].sharded_state_dict()
        shared = {
            key: value
            for key, value in state.items()
            if not isinstance(value, ShardedObject) or re.search(r"(q|k|final)_layernorm\.", key)
        }
        loaded = dist_checkpointing.load({"model": shared}, directory)["model"]
        return sorted(key for key in loaded if key.endswith("_extra_state"))


def test_a_converted_checkpoint_has_the_extra_state_of_every_norm(distributed, hf_dir, tmp_path):
    hf_to_megatron(hf_dir, tmp_path / "converted", quiet)
    found = distributed(1, _loaded_objects, str(tmp_path / "converted"), str(hf_dir), timeout_s=240)[0]
    assert "decoder.final_layernorm._extra_state" in found
    assert len(found) == 1 + 2 * 2  # two layers, each with a norm of the queries and one of the keys


def _refusal(directory: str, hf_dir: str) -> str:
    with learner(hf_dir, ONE) as model:
        try:
            read_tensors(model, Path(directory), weights_only=True)
        except UserError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("nest", [False, True], ids=["alone", "in a container"])
@pytest.mark.parametrize("place", ["_extra_state", "common_state"])
def test_an_object_that_runs_code_is_refused_in_every_place(distributed, hf_dir, tmp_path, place, nest):
    """Put it where the checkpoint keeps bytes; a longer value goes to the file's end."""
    distributed(1, _write, str(hf_dir), str(tmp_path / "written"), True, b"", timeout_s=240)
    planted = _Touch(tmp_path / "ran")
    _plant(tmp_path / "written", place, {"a": [(planted,)]} if nest else planted)
    assert (
        "not a readable checkpoint"
        in distributed(1, _refusal, str(tmp_path / "written"), str(hf_dir), timeout_s=240)[0]
    )
    assert not (tmp_path / "ran").exists()


def _plant(directory: Path, place: str, value: object) -> None:
    metadata, stored = read_metadata(directory), io.BytesIO()
    torch.save([value], stored)
    for index, where in metadata.storage_data.items():
        is_tensor = isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata)
        if place in index.fqn and not is_tensor:
            with (directory / where.relative_path).open("r+b") as file:
                where.offset, where.length = file.seek(0, io.SEEK_END), len(stored.getvalue())
                file.write(stored.getvalue())
            break
    else:
        raise AssertionError(f"{directory} has no {place}")
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
