"""Frozen layers (train.frozen_layers) keep every bit; the others take one process's steps in every layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfemo.config.schema import ParallelConfig
from selfemo.megatron.learner import Learner
from tests.helpers import context_parallel
from tests.helpers.parity import CLIP_GRAD, SHARED, Options, difference, learner, samples, three_steps
from tests.helpers.tiny_model import save_tiny

BOUND = 1e-6
LAYERS, FROZEN_LAYERS = 4, 2
FROZEN = Options(frozen_layers=FROZEN_LAYERS)
LAYOUTS = {
    "TP2": (2, ParallelConfig(tensor=2)),
    "TP2 +SP +recompute": (2, ParallelConfig(tensor=2, sequence_parallel=True, recompute=True)),
    "PP2": (2, ParallelConfig(pipeline=2)),
    "PP2 +DO +recompute": (2, ParallelConfig(pipeline=2, distributed_optimizer=True, recompute=True)),
    "PP2 VPP2": (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "DP2 +DO": (2, ParallelConfig(distributed_optimizer=True)),
    "PP2 DP2 +DO": (4, ParallelConfig(pipeline=2, distributed_optimizer=True)),
    "PP4 +recompute": (4, ParallelConfig(pipeline=4, recompute=True)),
}
"""Name: (processes, layout). Of two stages the first has nothing to train, of four the second neither."""
SLOW = ("TP2", "PP2", "PP2 DP2 +DO", "PP4 +recompute")


@pytest.fixture(
    scope="module", params=[pytest.param(True, marks=pytest.mark.slow), False], ids=["tied", "untied"]
)
def one_process(request, tmp_path_factory, distributed):
    """(directory, trace of the one-process run). Tied ones are in test_parity.py in every `make test`."""
    hf_dir = save_tiny(tmp_path_factory.mktemp("frozen") / "model", "qwen3", request.param, layers=LAYERS)
    yield str(hf_dir), distributed(1, three_steps, str(hf_dir), ParallelConfig(), FROZEN, timeout_s=240)[0]
    distributed.close()


def test_frozen_tensors_keep_every_bit_and_all_others_move(one_process):
    hf_dir, one = one_process
    model = AutoModelForCausalLM.from_pretrained(hf_dir)
    start = dict(model.named_parameters())  # a tied output layer is not among them
    kept = {name for name, parameter in start.items() if one.tensors[name].equal(parameter)}
    frozen = ("model.embed_tokens.", *(f"model.layers.{layer}." for layer in range(FROZEN_LAYERS)))
    assert kept == {name for name in start if name.startswith(frozen)}
    assert one.grad_norms[0] > CLIP_GRAD  # clipping acts, on the trained ones


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS]
)
def test_every_layout_takes_the_same_three_steps(distributed, one_process, name):
    hf_dir, one = one_process
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, hf_dir, parallel, FROZEN, timeout_s=240):
        assert difference(one, trace).largest <= BOUND, difference(one, trace)


@pytest.mark.parametrize(
    "options",
    [replace(SHARED, frozen_layers=FROZEN_LAYERS), replace(FROZEN, fuse="on")],
    ids=["shared", "fused"],
)
def test_how_prompts_and_output_layer_are_computed_changes_nothing(distributed, one_process, options):
    hf_dir, one = one_process
    for trace in distributed(2, three_steps, hf_dir, ParallelConfig(tensor=2), options, timeout_s=240):
        assert difference(one, trace).largest <= BOUND, difference(one, trace)


def _gradients(model: Learner) -> dict[str, torch.Tensor]:
    """Main gradients of a step that moves nothing, by parameter name, and the norm that the step reports."""
    stats = model.sft_step(samples(model.architecture.vocab_size), 0.0)
    (chunk,) = model.chunks
    found = {name: p.main_grad.clone() for name, p in chunk.named_parameters() if p.requires_grad}
    clipped_by = min(1.0, CLIP_GRAD / (stats.grad_norm + 1e-6))  # megatron-core clips in place
    return {"norm": torch.tensor(stats.grad_norm)} | {name: g / clipped_by for name, g in found.items()}


def _whole_and_frozen(hf_dir: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    with learner(hf_dir, ParallelConfig()) as model:
        whole = _gradients(model)
    with learner(hf_dir, ParallelConfig(), FROZEN) as model:
        return whole, _gradients(model)


def test_gradients_are_those_of_the_whole_model_and_the_norm_counts_no_frozen_one(distributed, one_process):
    hf_dir, _ = one_process
    whole, some = distributed(1, _whole_and_frozen, hf_dir, timeout_s=240)[0]
    norm = some.pop("norm")
    assert {name.split(".")[2] for name in some if name.startswith("decoder.layers.")} == {"2", "3"}
    for name, gradient in some.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-6, msg=name)
    by_hand = torch.cat([whole[name].flatten() for name in some]).norm()
    torch.testing.assert_close(norm, by_hand, rtol=1e-5, atol=0)
    assert norm < 0.99 * whole["norm"]


def _runs_of_layers(
    hf_dir: str, parallel: ParallelConfig, frozen_layers: int
) -> dict[int, tuple[float, bool]]:
    """{layer number from 0: (runs per micro-batch of a training step, whether any was in a graph)}."""
    runs: dict[int, list[bool]] = {}
    with learner(hf_dir, parallel, Options(frozen_layers=frozen_layers)) as model:
        for chunk in model.chunks:
            for layer in chunk.decoder.layers:
                layer.register_forward_hook(
                    lambda layer, _, output: runs.setdefault(layer.layer_number - 1, []).append(
                        output[0].requires_grad
                    )
                )
        batch = samples(model.architecture.vocab_size)
        model.sft_step(batch, 0.0)
        count = len(model.plan(batch))
    return {layer: (len(graphs) / count, any(graphs)) for layer, graphs in runs.items()}


@pytest.mark.parametrize("recompute", [False, True])
def test_frozen_layers_run_once_and_outside_the_graph(distributed, one_process, recompute):
    """The border is inside the second stage, whose input megatron-core marks as wanting a gradient."""
    hf_dir, _ = one_process
    parallel = ParallelConfig(pipeline=2, recompute=recompute)
    first, second = distributed(2, _runs_of_layers, hf_dir, parallel, 3, timeout_s=240)
    trained = 2.0 if recompute else 1.0
    assert first | second == {0: (1.0, False), 1: (1.0, False), 2: (1.0, False), 3: (trained, True)}


@pytest.mark.long
def test_context_ranks_freeze_alike(distributed, one_process):
    hf_dir, _ = one_process
    options = replace(context_parallel.OPTIONS, frozen_layers=FROZEN_LAYERS)
    one = distributed(1, three_steps, hf_dir, ParallelConfig(), options, timeout_s=240)[0]
    processes, parallel = context_parallel.LAYOUTS["CP2 +DO +recompute"]
    for trace in distributed(
        processes, context_parallel.three_steps, hf_dir, parallel, options, timeout_s=240
    ):
        assert difference(one, trace).largest <= BOUND, difference(one, trace)
