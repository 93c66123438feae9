"""Step times that others published, and the one run of them that the rates are fitted to.

Fitted: NeMo-RL, Llama 3.1 8B on 8 H100, phase by phase. Held out: every other run below; tests compare them, and `selfemo plan
--accuracy` prints them. What the sources leave open is assumed alike for all runs: prompts of 120 tokens (the difference between
trained and generated tokens in the v0.4 table is 110 to 132), training one sample per micro-batch, logprobs in padded batches, one
completion in a hundred cut at the cap. These assumptions were made with all the runs in view: held out are the rates, not the form
of the model. All runs are of one framework, so another one's overheads may be further off than the table shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from selfemo.planning.generation import Engine
from selfemo.planning.hardware import GIB, GPUS
from selfemo.planning.layout import Layout
from selfemo.planning.parameters import total_elements
from selfemo.planning.rates import Rates
from selfemo.planning.steptime import StepSeconds, step_seconds
from selfemo.planning.sync import sync_bytes
from selfemo.planning.workload import GenerationCall, Lengths, Workload
from selfemo.weights.architecture import Architecture

PROMPT_TOKENS = 120.0
ENGINE_SHARE = 0.6
"""gpu_memory_utilization of these recipes."""
ENGINE_WORKSPACE_BYTES = 4 * GIB


@dataclass(frozen=True)
class PublishedRun:
    """A step time from elsewhere."""

    name: str
    source: str
    architecture: Architecture
    layout: Layout
    samples: int
    completion_tokens: float
    logprob_batch: int
    step_s: float
    phases: StepSeconds | None = None
    """Where the source gives them; `other` is the rest of the step."""
    optimizer_steps: int = 4
    max_tokens: int = 4096


def _dense(layers: int, hidden: int, intermediate: int, heads: int, vocabulary: int, family: str, head_dim: int = 128) -> Architecture:
    return Architecture(
        family=family,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=head_dim,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        qk_norm=family == "qwen3",
        qkv_bias=False,
        max_position_embeddings=131_072,
        dtype="bfloat16",
    )


LLAMA_8B = _dense(32, 4096, 14_336, 32, 128_256, "llama")
LLAMA_70B = _dense(80, 8192, 28_672, 64, 128_256, "llama")
QWEN3_32B = _dense(64, 5120, 25_600, 64, 151_936, "qwen3")

ISSUE_959 = "github.com/NVIDIA-NeMo/RL/issues/959, the figures of the v0.3 announcement"
SUMMARY = "NeMo-RL docs/about/performance-summary.md"

FITTED = PublishedRun(
    "Llama 3.1 8B, 8 H100",
    ISSUE_959,
    LLAMA_8B,
    Layout(1, 8, pipeline=2, distributed_optimizer=True),
    samples=2048,
    completion_tokens=795,
    logprob_batch=4,
    step_s=112,
    phases=StepSeconds(generate=58, logprob=18, train=28, sync=5, other=3),
)
HELD_OUT = (
    PublishedRun(
        "Llama 3.1 70B, 64 H100",
        ISSUE_959,
        LLAMA_70B,
        Layout(8, 8, tensor=4, pipeline=4, distributed_optimizer=True, engine_tensor=4),
        samples=2048,
        completion_tokens=398,
        logprob_batch=4,
        step_s=147,
        phases=StepSeconds(generate=84, logprob=18, train=28, sync=14, other=3),
    ),
    PublishedRun(
        "Llama 3.1 8B, 16 H100, v0.5",
        SUMMARY + ", v0.5, mean length as in v0.4",
        LLAMA_8B,
        Layout(2, 8, pipeline=2, distributed_optimizer=True, recompute=True),
        samples=2048,
        completion_tokens=1060,
        logprob_batch=2,
        step_s=92.8,
    ),
    PublishedRun(
        "Llama 3.1 8B, 16 H100, v0.4",
        SUMMARY + ", v0.4",
        LLAMA_8B,
        Layout(2, 8, pipeline=2, distributed_optimizer=True, recompute=True),
        samples=2048,
        completion_tokens=1060,
        logprob_batch=2,
        step_s=97.7,
    ),
    PublishedRun(
        "Qwen3 32B, 32 H100, v0.4",
        SUMMARY + ", v0.4",
        QWEN3_32B,
        Layout(4, 8, tensor=4, pipeline=4, sequence_parallel=True, distributed_optimizer=True, engine_tensor=4),
        samples=2048,
        completion_tokens=3206,
        logprob_batch=4,
        step_s=393,
    ),
)

NOT_PREDICTED = (
    ("torchtitan, Qwen3 8B, 8 H100: 136 s", "its samples per step and lengths are not known to us, and the time hangs on both"),
)
"""Published step times that cannot be compared, and why."""


def predict(run: PublishedRun, rates: Rates) -> StepSeconds:
    """The step of a published run under some rates."""
    lengths = Lengths(PROMPT_TOKENS, run.completion_tokens, run.max_tokens)
    workload = Workload(
        calls=(GenerationCall(run.samples, run.samples // 32, lengths),),
        train_samples=run.samples,
        lengths=lengths,
        optimizer_steps=run.optimizer_steps,
        logprob_passes=2,
        microbatch_tokens=None,
        logprob_batch=run.logprob_batch,
        head_on_completions_only=False,
    )
    gpu = GPUS["h100-80g"]
    weights = total_elements(run.architecture) * 2 // run.layout.engine_tensor
    cache_bytes = int(ENGINE_SHARE * gpu.memory_bytes) - weights - ENGINE_WORKSPACE_BYTES
    engine = Engine(run.architecture, run.layout.engine_tensor, "bfloat16", cache_bytes, max_num_seqs=256)
    traffic = sync_bytes(run.architecture, run.layout, "bfloat16", "bfloat16")
    return step_seconds(run.architecture, run.layout, workload, engine, traffic, "checkpoint", "bfloat16", gpu, rates)


@cache
def fitted_rates() -> Rates:
    """The rates under which FITTED is met phase by phase. Every fitted rate enters its phase linearly, so two points give it."""
    wanted = FITTED.phases
    assert wanted is not None
    rates = Rates()
    for field, phase in (("layer_s", "train"), ("decode_step_s", "generate")):
        low, high = (getattr(predict(FITTED, replace(rates, **{field: value})), phase) for value in (0.0, 1e-3))
        rates = replace(rates, **{field: (getattr(wanted, phase) - low) / (high - low) * 1e-3})
    traffic = sync_bytes(FITTED.architecture, FITTED.layout, "bfloat16", "bfloat16")
    return replace(rates, refit_rate=traffic.engine_weights / wanted.sync, step_s=wanted.other)
