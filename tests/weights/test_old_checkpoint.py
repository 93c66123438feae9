"""Read a checkpoint of megatron-core 0.16.1 (two tensor-parallel ranks, two steps), by trainer and
converter.

megatron_0_16_1/ was written on Python 3.12 by the project's commit 7c02281: the model that tests
save, its checkpoint with optimizer moments, and the results of that version: digests of the
weights, loss and gradient norm of the third step. 0.16 kept plain values in common.pt, 0.19 keeps
them among the tensors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfemo.config.schema import ParallelConfig
from selfemo.kernels import LossConfig
from selfemo.megatron.checkpoint import TensorWrite, read_tensors
from selfemo.weights.convert import megatron_to_hf
from selfemo.weights.torch_dist import COMMON_NAME, read_common
from tests.helpers.parity import LEARNING_RATE, learner, samples

OLD = Path(__file__).with_name("megatron_0_16_1")
EXPECTED = json.loads((OLD / "expected.json").read_text())
LOSS = LossConfig.preset("self_grpo", kl_beta=0.1)
LAYOUTS = {"TP2": (2, ParallelConfig(tensor=2)), "TP1": (1, ParallelConfig()), "DP2": (2, ParallelConfig())}


def _digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def _load_then_step(
    checkpoint: str, parallel: ParallelConfig, again: str
) -> tuple[int, dict[str, str], float, float]:
    """Load, write the checkpoint anew into `again`, take the third step."""
    with learner(str(OLD / "model"), parallel) as model:
        step = read_tensors(model, Path(checkpoint))["step"]
        digests = _digests(dict(model.hf_tensors(1 << 20)))
        Path(again).mkdir(exist_ok=True)
        torch.distributed.barrier()
        TensorWrite(model, Path(again), {"step": step}).is_done(blocking=True)
        batch = samples(model.architecture.vocab_size)
        stats = model.policy_step(
            batch, model.plan(batch), LOSS, LEARNING_RATE, reference=model.logprobs(model.plan(batch))
        )
        return step, digests, stats.step.loss, stats.step.grad_norm


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_trainer_goes_on_from_it_in_any_layout(distributed, tmp_path, layout):
    world_size, parallel = LAYOUTS[layout]
    for source, again in ((OLD / "checkpoint", tmp_path / "again"), (tmp_path / "again", tmp_path / "twice")):
        for step, digests, loss, grad_norm in distributed(
            world_size, _load_then_step, str(source), parallel, str(again), timeout_s=240
        ):
            assert (step, digests) == (2, EXPECTED["digests"])
            assert loss == pytest.approx(EXPECTED["loss"], abs=1e-6)
            assert grad_norm == pytest.approx(EXPECTED["grad_norm"], rel=1e-6)
    assert not (tmp_path / "again" / COMMON_NAME).exists()  # a checkpoint of 0.19 is read from its own place
    assert (
        read_common(tmp_path / "again")["common"]["step"]
        == read_common(OLD / "checkpoint")["common"]["step"]
        == 2
    )


def test_the_converter_takes_its_weights(tmp_path):
    megatron_to_hf(
        OLD / "checkpoint",
        tmp_path / "hf",
        lambda name, done_bytes: None,
        source_dir=OLD / "model",
        verify=True,
    )
    assert _digests(load_file(tmp_path / "hf" / "model.safetensors")) == EXPECTED["digests"]
