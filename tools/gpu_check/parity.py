"""Step `parity`: compares logits and gradients of one small Qwen3 from three implementations.

They are Megatron's local layer, Transformer Engine's, and transformers. transformers in fp32, with
weights that the run's dtype holds exactly, is the truth. The local layer may be as far from it as
rounding explains (rounding.py). Transformer Engine's, which no other test can see, may be at most
twice as far as the local one, and so may the layer with shared prompts, whose attention is flash-attn's
in bf16: in a tensor whose errors average, another order of the same roundings does not double them.
On a CPU there is no Transformer Engine: the local layer is compared alone, with and without shared prompts.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from selfemo.config.layout import Layout
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.device import Device, select_device
from selfemo.megatron.model import DTYPES, build_chunks, transformer_config
from selfemo.megatron.output_layer import completion_logits
from selfemo.megatron.packing import pack
from selfemo.megatron.parallel import RankLayout, init_parallel
from selfemo.models.architecture import read_architecture
from selfemo.selfplay.tokenizer_texts import tokenizer_texts
from selfemo.tokens.init_model import init_model
from selfemo.weights.gather import SINGLE, hf_tensors
from selfemo.weights.load import load_hf_weights
from tools.gpu_check.rounding import TIMES_EXPECTED, distance, expected_distance
from tools.gpu_check.system import small_config

TIMES_LOCAL = 2.0
BUCKET_BYTES = 1 << 24
LOGITS = "logits"


@dataclass(frozen=True)
class Computed:
    """Logits and gradients that one implementation computes from the batch."""

    logits_NV: torch.Tensor
    gradients: dict[str, torch.Tensor]
    """Gradients of the sum of the completion's logprobs, by Hugging Face name."""


def main() -> None:
    """Print the differences; exit status 1 if one is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("overrides", nargs="*", help="settings such as train.attention_backend=unfused")
    config, device = small_config(parser.parse_args().overrides), select_device()
    dist.init_process_group(  # such a store needs no port
        device.backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device.group_device
    )
    compare(config, device)


def compare(config: RunConfig, device: Device) -> None:
    """Compare every implementation that the device has with transformers, in config.train.dtype.

    Raises:
        SystemExit: one differs by more than rounding explains.
    """
    dtype, layers = config.train.dtype, config.model.num_layers
    layout = init_parallel(Layout(), device, seed=1)
    with tempfile.TemporaryDirectory() as directory:
        model_dir = init_model(
            Path(directory) / "model", config.model, tokenizer_texts(load_run_corpus(config)), seed=1
        )
        truth = _transformers(model_dir, device, DTYPES[dtype])
        local_device = replace(device, kind="cpu")  # the local layer, on this device's tensors
        local = _megatron(model_dir, config, layout, local_device)
        expected = {
            name: expected_distance(dtype, layers, is_gradient=name != LOGITS)
            for name in [LOGITS, *truth.gradients]
        }
        limits = {name: TIMES_EXPECTED * value for name, value in expected.items()}
        measured = told("local layer", local, truth, limits)
        allowed = {
            name: min(limits[name], max(expected[name], TIMES_LOCAL * measured[name])) for name in limits
        }
        told(
            "shared prompts", _megatron(model_dir, config, layout, device, share_prompts=True), truth, allowed
        )
        if device.is_cuda:
            told("Transformer Engine", _megatron(model_dir, config, layout, device), truth, allowed)
        else:
            print("Transformer Engine needs a GPU: the local layer was compared with transformers alone")


def _samples() -> list[TrainingSample]:
    # Id 0 pads: its embedding is zero, so a norm's gradient explodes there, and transformers leaves it out.
    ids = [tuple(1 + (7 * i + 3 * j) % 1000 for j in range(20 + 30 * i)) for i in range(4)]
    samples = [TrainingSample(sample[:-8], sample[-8:]) for sample in ids]
    # the last two share a prompt
    return [
        *samples,
        TrainingSample(samples[-1].prompt_ids, samples[0].completion_ids),
    ]


def _megatron(
    model_dir: Path, config: RunConfig, layout: RankLayout, device: Device, share_prompts: bool = False
) -> Computed:
    architecture = read_architecture(model_dir)
    options = transformer_config(
        architecture,
        layout.sizes,
        DTYPES[config.train.dtype],
        device,
        share_prompts,
        config.train.attention_backend,
    )
    chunks = build_chunks(architecture, options, layout, config.model.max_length, device, share_prompts)
    load_hf_weights(chunks, model_dir, architecture, 0, 1)
    samples = _samples()
    batch = pack(samples, range(len(samples)), 1, device.torch_device, share_prompts=share_prompts)
    logits_NV = chunks[0](
        batch.token_ids_T[None],
        batch.position_ids_T[None],
        None,
        packed_seq_params=batch.packed_seq_params,
        loss_mask=batch.loss_mask_T[None],
        output_processor=completion_logits,
    )[0].float()
    logits_NV.log_softmax(-1).gather(1, batch.target_ids_N[:, None]).sum().backward()
    # gradients take the weights' place, so that they get Hugging Face names and shapes
    for parameter in chunks[0].parameters():
        parameter.data = parameter.grad.float()
    gradients = {
        name: tensor.clone() for name, tensor in hf_tensors(chunks, architecture, SINGLE, BUCKET_BYTES)
    }
    return Computed(logits_NV.detach(), gradients)


def _transformers(model_dir: Path, device: Device, dtype: torch.dtype) -> Computed:
    from transformers import AutoModelForCausalLM

    # Read in the run's dtype and widened: both sides then start from the same numbers.
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).float().to(device.torch_device)
    rows = []
    for sample in _samples():
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids], device=device.torch_device)
        logits_NV = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1].float()
        logits_NV.log_softmax(-1).gather(1, ids[0, len(sample.prompt_ids) :, None]).sum().backward()
        rows.append(logits_NV.detach())
    return Computed(
        torch.cat(rows), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )


def told(name: str, found: Computed, truth: Computed, allowed: dict[str, float]) -> dict[str, float]:
    """Print the distances from the truth, by tensor; return them."""
    if found.gradients.keys() != truth.gradients.keys():
        raise SystemExit(
            f"{name}: tensors with a gradient differ: "
            f"{sorted(found.gradients.keys() ^ truth.gradients.keys())}"
        )
    pairs = {LOGITS: (found.logits_NV, truth.logits_NV)}
    pairs |= {key: (found.gradients[key], truth.gradients[key]) for key in truth.gradients}
    differences = {key: distance(a, b) for key, (a, b) in pairs.items()}
    worst = max(differences, key=lambda key: differences[key] / allowed[key])
    print(
        f"{name}: logits off by {differences[LOGITS]:.1e}, nearest its limit {worst}: "
        f"{differences[worst]:.1e} of {allowed[worst]:.1e}"
    )
    beyond = [
        f"{key} {differences[key]:.1e} > {allowed[key]:.1e}"
        for key in differences
        if not differences[key] <= allowed[key]
    ]
    if beyond:
        raise SystemExit(f"{name} differs from transformers: {'; '.join(beyond)}")
    return differences


if __name__ == "__main__":
    main()
