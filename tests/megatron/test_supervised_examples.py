"""Test a policy step that also learns from supervised examples: one loss, in every layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfemo.config.schema import ParallelConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import LossConfig
from selfemo.megatron.learner import Learner
from tests.helpers.parity import CLIP_GRAD, SHARED, Options, difference, learner, samples, three_steps
from tests.helpers.tiny_model import save_tiny

BOUND = 1e-6
LOSS = LossConfig.preset("self_grpo", kl_beta=0.0)
SUPERVISED = Options(supervised=True)
LAYOUTS = {
    "TP2 +SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "PP2 VPP2": (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "DP2 +DO": (2, ParallelConfig(distributed_optimizer=True)),
}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("supervised") / "model", "qwen3", True, layers=4))


@pytest.fixture(scope="module")
def one_process(hf_dir, distributed):
    yield distributed(1, three_steps, hf_dir, ParallelConfig(), SUPERVISED, timeout_s=240)[0]
    distributed.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_takes_the_same_three_steps(distributed, hf_dir, one_process, name):
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, hf_dir, parallel, SUPERVISED, timeout_s=240):
        assert difference(one_process, trace).largest <= BOUND, difference(one_process, trace)


def test_packing_and_microbatches_change_nothing(distributed, hf_dir, one_process):
    options = replace(SHARED, supervised=True)
    (trace,) = distributed(1, three_steps, hf_dir, ParallelConfig(), options, timeout_s=240)
    assert difference(one_process, trace).largest <= BOUND, difference(one_process, trace)


def _gradients(model: Learner, norm: float) -> dict[str, torch.Tensor]:
    (chunk,) = model.chunks
    clipped_by = min(1.0, CLIP_GRAD / (norm + 1e-6))  # megatron-core clips in place
    return {name: p.main_grad.clone() / clipped_by for name, p in chunk.named_parameters()}


def _parts(hf_dir: str) -> dict[str, tuple[float, float, dict[str, torch.Tensor]]]:
    """(loss, supervised loss, gradients) of a step that moves nothing: each part alone, and both."""
    found = {}
    with learner(hf_dir, ParallelConfig()) as model:
        batch = samples(model.architecture.vocab_size)
        taught = [
            TrainingSample(s.prompt_ids, s.completion_ids, weight=0.25 + 0.5 * (i % 2))
            for i, s in enumerate(batch[::3])
        ]
        for name, policy, supervised in (
            ("policy", batch, []),
            ("supervised", [], taught),
            ("both", batch, taught),
            ("weight 1", [], [replace(s, weight=1.0) for s in taught]),
        ):
            stats = model.policy_step(policy, model.plan(policy), LOSS, 0.0, supervised=supervised)
            found[name] = (stats.step.loss, stats.supervised_loss, _gradients(model, stats.step.grad_norm))
        sft = model.sft_step([replace(s, weight=1.0) for s in taught], 0.0)
        found["sft"] = (sft.loss, sft.loss, _gradients(model, sft.grad_norm))
    return found


def test_the_loss_is_the_sum_of_its_parts_and_examples_count_by_their_weights(distributed, hf_dir):
    (found,) = distributed(1, _parts, hf_dir, timeout_s=240)
    loss, _, gradients = found["both"]
    assert loss == pytest.approx(found["policy"][0] + found["supervised"][0], abs=1e-6)
    for name, gradient in gradients.items():
        added = found["policy"][2][name] + found["supervised"][2][name]
        torch.testing.assert_close(gradient, added, rtol=1e-5, atol=1e-6, msg=name)
    assert found["both"][1] == pytest.approx(found["supervised"][1])
    assert found["policy"][1] == 0
    assert found["weight 1"][0] == pytest.approx(found["sft"][0], abs=1e-6), "weights of 1 are the SFT loss"
    for name, gradient in found["weight 1"][2].items():
        torch.testing.assert_close(gradient, found["sft"][2][name], rtol=1e-5, atol=1e-6, msg=name)
    assert found["supervised"][0] != pytest.approx(found["sft"][0], rel=1e-2), (
        "other weights are another loss"
    )
