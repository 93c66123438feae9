"""The frozen layers' output is kept (train.frozen_cache_bytes): the same steps, the layers run less often."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from selfemo.common.errors import UserError
from selfemo.config.checks import run_violations
from selfemo.config.layout import layout_of
from selfemo.config.load import load_config
from selfemo.config.schema import ParallelConfig
from selfemo.megatron.attention import Piece, Segments
from selfemo.megatron.frozen import FrozenOutputs
from selfemo.megatron.frozen_store import FrozenStore
from selfemo.models.architecture import read_architecture
from tests.helpers.parity import SHARED, Options, difference, learner, samples, three_steps
from tests.helpers.tiny_model import save_tiny

BOUND = 1e-6
CPU = torch.device("cpu")
LAYERS, FROZEN_LAYERS = 4, 3
FROZEN = Options(frozen_layers=FROZEN_LAYERS)
CACHED = replace(FROZEN, frozen_cache_bytes=1 << 30)
SHARED_CACHED = replace(SHARED, frozen_layers=FROZEN_LAYERS, frozen_cache_bytes=1 << 30)
CASES = {
    "plain": (1, ParallelConfig(), CACHED),
    "shared prompts, supervised": (1, ParallelConfig(), replace(SHARED_CACHED, supervised=True)),
    "TP2 +recompute": (2, ParallelConfig(tensor=2, recompute=True), SHARED_CACHED),
    "DP2 +DO": (2, ParallelConfig(distributed_optimizer=True), CACHED),
}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory, distributed):
    yield str(save_tiny(tmp_path_factory.mktemp("cached") / "model", "qwen3", True, layers=LAYERS))
    distributed.close()


@pytest.mark.parametrize("name", CASES)
def test_every_layout_takes_the_steps_of_one_process_without_a_cache(distributed, hf_dir, name):
    processes, parallel, options = CASES[name]
    plain = replace(FROZEN, supervised=options.supervised)
    one = distributed(1, three_steps, hf_dir, ParallelConfig(), plain, timeout_s=240)[0]
    for trace in distributed(processes, three_steps, hf_dir, parallel, options, timeout_s=240):
        assert difference(one, trace).largest <= BOUND, difference(one, trace)


@pytest.mark.parametrize("options", [CACHED, SHARED_CACHED], ids=["plain", "shared"])
def test_what_is_kept_changes_no_bit(distributed, hf_dir, options):
    """A resumed run begins with nothing kept; 5,000 bytes hold a piece or two of these."""
    full, little = (
        distributed(1, three_steps, hf_dir, ParallelConfig(), replace(options, frozen_cache_bytes=size))[0]
        for size in (1 << 30, 5_000)
    )
    assert (full.losses, full.grad_norms) == (little.losses, little.grad_norms)
    assert all(tensor.equal(little.tensors[name]) for name, tensor in full.tensors.items())


def _runs(hf_dir: str, options: Options) -> tuple[list[int], int]:
    """How often each layer ran in two passes and a step over a batch, and the pieces of the batch."""
    with learner(hf_dir, ParallelConfig(), options) as model:
        runs = [0] * LAYERS
        for layer in model.chunks[0].decoder.layers:

            def count(module: torch.nn.Module, *_: object) -> None:
                runs[module.layer_number - 1] += 1

            layer.register_forward_hook(count)
        batch = samples(model.architecture.vocab_size)
        plan = model.plan(batch)
        model.logprobs(plan)
        with model.weights_of(model.snapshot()):
            model.logprobs(plan)
        model.sft_step(batch, 0.0)
        return runs, len({piece.digest for each in plan for piece in each.packed_seq_params.pieces})


@pytest.mark.parametrize("options", [CACHED, SHARED_CACHED], ids=["plain", "shared"])
def test_frozen_layers_run_once_for_each_piece(distributed, hf_dir, options):
    ((runs, pieces),) = distributed(1, _runs, hf_dir, options)
    assert runs[:FROZEN_LAYERS] == [pieces] * FROZEN_LAYERS
    ((without, none),) = distributed(1, _runs, hf_dir, replace(options, frozen_cache_bytes=0))
    assert none == 0
    assert runs[FROZEN_LAYERS:] == without[FROZEN_LAYERS:]  # once per micro-batch, in every pass


@pytest.mark.parametrize("options", [CACHED, SHARED_CACHED], ids=["plain", "shared"])
def test_another_run_finds_on_disk_what_the_first_one_computed(distributed, hf_dir, tmp_path, options):
    stored = replace(options, frozen_cache_dir=str(tmp_path / "new" / "frozen"), frozen_cache_bytes=5_000)
    (alone,) = distributed(1, three_steps, hf_dir, ParallelConfig(), options)
    for _ in range(2):
        (found,) = distributed(1, three_steps, hf_dir, ParallelConfig(), stored)
        assert (found.losses, found.grad_norms) == (alone.losses, alone.grad_norms)
        assert all(tensor.equal(found.tensors[name]) for name, tensor in alone.tensors.items())
    ((runs, _),) = distributed(1, _runs, hf_dir, stored)
    assert runs[:FROZEN_LAYERS] == [0] * FROZEN_LAYERS, "not even once"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} == {".safetensors"}, "nothing half written is left"


@pytest.mark.parametrize(
    "change", ["frozen layers", "embedding", "frozen depth"], ids=lambda name: name.replace(" ", "-")
)
def test_rows_of_other_frozen_weights_are_not_found(distributed, hf_dir, tmp_path, change):
    """The trained layers' weights decide nothing: runs that train them otherwise share the rows."""
    stored = replace(CACHED, frozen_cache_dir=str(tmp_path / "frozen"))
    distributed(1, _runs, hf_dir, stored)
    for name, is_shared in ((change, False), ("trained layer", True)):
        other = tmp_path / name
        shutil.copytree(hf_dir, other)
        tensors = load_file(other / "model.safetensors")
        key = {"frozen layers": "layers.1.mlp.up_proj.weight", "embedding": "embed_tokens.weight"}.get(name)
        key = "model." + (key or f"layers.{LAYERS - 1}.mlp.up_proj.weight")
        tensors[key] = tensors[key] * 1.01 if name != "frozen depth" else tensors[key]
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        depth = FROZEN_LAYERS - 1 if name == "frozen depth" else FROZEN_LAYERS
        ((runs, pieces),) = distributed(1, _runs, str(other), replace(stored, frozen_layers=depth))
        assert runs[:depth] == [0 if is_shared else pieces] * depth, name


@pytest.mark.parametrize("damage", [b"", b"\x05\x00", b"rows"])
def test_a_damaged_file_is_named(tmp_path, damage):
    store = FrozenStore(tmp_path, "a program")
    rows = torch.randn(5, 1, 8, dtype=torch.bfloat16)
    assert store.find(b"piece", CPU) is None
    store.keep(b"piece", rows)
    assert rows.equal(FrozenStore(tmp_path, "a program").find(b"piece", CPU))
    assert FrozenStore(tmp_path, "another").find(b"piece", CPU) is None
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage)
    with pytest.raises(UserError, match=rf"{file.name}: not rows that a run kept: remove it"):
        store.find(b"piece", CPU)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"train\.frozen_cache_dir .*file/.*: cannot be written"):
        FrozenStore(tmp_path / "file", "a program").keep(b"piece", torch.zeros(1, 1, 2))


def _logprobs_after_loading(first: str, then: str) -> torch.Tensor:
    with learner(first, ParallelConfig(), CACHED) as model:
        plan = model.plan(samples(model.architecture.vocab_size))
        if then != first:
            model.logprobs(plan)
            model.load_hf(then)
        return torch.cat(model.logprobs(plan))


def test_other_weights_forget_what_was_kept(distributed, hf_dir, tmp_path):
    other = str(save_tiny(tmp_path / "other", "qwen3", True, layers=LAYERS, seed=5))
    (reused,) = distributed(1, _logprobs_after_loading, hf_dir, other)
    (fresh,) = distributed(1, _logprobs_after_loading, other, other)
    assert reused.equal(fresh)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40))), st.integers(0, 100))
def test_the_limit_holds_and_the_last_used_is_kept(uses, limit_floats):
    outputs = FrozenOutputs(limit_floats * 4)
    sizes: dict[int, int] = {}
    for name, floats in uses:
        floats = sizes.setdefault(name, floats)
        piece = Piece(slice(0, floats), bytes([name]), Segments())
        rows = outputs.find(piece, CPU)
        if rows is None:
            outputs.keep(piece, torch.full((floats,), float(name)))
        else:
            assert rows.tolist() == [float(name)] * floats
        assert outputs.held_bytes <= outputs.limit_bytes
        assert (outputs.find(piece, CPU) is not None) == (floats <= limit_floats)
    outputs.forget()
    assert outputs.held_bytes == 0
    assert all(outputs.find(Piece(slice(0, 1), bytes([name]), Segments()), CPU) is None for name in range(10))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.frozen_layers=0"], "has no frozen layer to serve"),
        (["train.frozen_layers=1", "parallel.pipeline=2"], "whole sequences of whole models"),
        (
            ["train.frozen_layers=1", "parallel.tensor=2", "parallel.sequence_parallel=true"],
            "parallel.sequence_parallel=false",
        ),
        (
            ["train.frozen_layers=1", "parallel.tensor=2", "train.frozen_cache_dir=/tmp/frozen"],
            "set parallel.tensor=1",
        ),
    ],
)
def test_a_cache_that_cannot_work_is_told(hf_dir, settings, said):
    config = load_config(
        None, [f"model.path={hf_dir}", "model.max_length=64", "train.frozen_cache_bytes=4096", *settings]
    )
    found = list(run_violations(config, layout_of(config, 1, 2), read_architecture(hf_dir)))
    assert any(said in sentence for sentence in found), found


def test_a_directory_without_a_cache_in_memory_is_told(hf_dir):
    config = load_config(
        None, [f"model.path={hf_dir}", "model.max_length=64", "train.frozen_cache_dir=/tmp/frozen"]
    )
    found = list(run_violations(config, layout_of(config, 1, 1), read_architecture(hf_dir)))
    assert any("train.frozen_cache_dir=/tmp/frozen stands beside" in sentence for sentence in found), found
