"""List step times that others published, and fit the planner's rates to one of them.

Fitted: NeMo-RL, Llama 3.1 8B on 8 H100, phase by phase. Held out: every other run of that
framework; tests compare them, and `selfemo plan --accuracy` prints them. Where the sources leave a
value open, all runs share one assumption: prompts of 120 tokens (the difference between trained and
generated tokens in the v0.4 table is 110 to 132), training one sample per micro-batch, logprobs in
padded batches, one completion in a hundred cut at the cap. These assumptions were made with all the
runs in view: held out are the rates, not the form of the model. All those runs are of one
framework: another one's overheads may be further off than the table shows.

Assumed: runs whose batch or lengths are not published with their step time. They are planned with
the only public recipe that can have produced them, printed as guesses, and count neither as met nor
as held out (docs/planning.md says what was searched).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from selfemo.config.layout import Layout
from selfemo.models.architecture import Architecture
from selfemo.planning.generation import Engine, rollout_seconds
from selfemo.planning.hardware import GIB, GPUS
from selfemo.planning.parameters import total_elements
from selfemo.planning.rates import Rates
from selfemo.planning.steptime import StepSeconds, step_seconds
from selfemo.planning.sync import sync_bytes
from selfemo.planning.workload import GenerationCall, Lengths, Workload

PROMPT_TOKENS = 120.0
ENGINE_SHARE = 0.6
"""gpu_memory_utilization of these recipes."""
ENGINE_WORKSPACE_BYTES = 4 * GIB


@dataclass(frozen=True)
class PublishedRun:
    """A step time that others published, and the settings it was measured with."""

    name: str
    source: str
    architecture: Architecture
    layout: Layout
    samples: int
    completion_tokens: float
    logprob_batch: int | None
    step_s: float
    phases: StepSeconds | None = None
    """Seconds by phase if the source gives them; `other` is the rest of the step."""
    optimizer_steps: int = 4
    max_tokens: int = 4096
    group_size: int = 32
    logprob_passes: int = 2
    turns: int = 1
    """Generation calls per sample, one after another, of `completion_tokens` and at most
    `max_tokens` each."""
    microbatch_tokens: int | None = None
    """Packed tokens per micro-batch; None for one sample each."""
    engine_replicas: int | None = None
    """Number of engines if they have GPUs of their own, `layout` then being the trainer's alone;
    None if they share its GPUs."""


def _dense(
    layers: int, hidden: int, intermediate: int, heads: int, vocabulary: int, family: str, head_dim: int = 128
) -> Architecture:
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
QWEN3_8B = _dense(36, 4096, 12_288, 32, 151_936, "qwen3")
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
        Layout(
            4, 8, tensor=4, pipeline=4, sequence_parallel=True, distributed_optimizer=True, engine_tensor=4
        ),
        samples=2048,
        completion_tokens=3206,
        logprob_batch=4,
        step_s=393,
    ),
)

SEARCH_R1_TOKENS = 48 * 4096 / 256
"""Trained tokens per sample of torchtitan's Search-R1 recipe if all 48 rows of 4,096 packed tokens are full.

It is an upper bound: the rows hold no more tokens for the 256 samples.
"""
SEARCH_R1_TURNS = 5
"""Four searches and an answer, the most that the recipe allows."""


def _search_r1(
    name: str, source: str, architecture: Architecture, layout: Layout, replicas: int, step_s: float
) -> PublishedRun:
    """Describe a run of that recipe with completions as long as they can be.

    Args:
        layout: the trainer's, with the engines' tensor parallelism.
    """
    return PublishedRun(
        name,
        source,
        architecture,
        layout,
        samples=256,
        completion_tokens=(SEARCH_R1_TOKENS - PROMPT_TOKENS) / SEARCH_R1_TURNS,
        logprob_batch=None,
        step_s=step_s,
        optimizer_steps=1,
        max_tokens=512,
        group_size=8,
        turns=SEARCH_R1_TURNS,
        microbatch_tokens=4096,
        engine_replicas=replicas,
    )


ASSUMED = (
    replace(
        _search_r1(
            "Qwen3 8B, 8 H100, torchtitan",
            "136 s: source not found; "
            "recipe rl_grpo_qwen3_8b_search_r1 of github.com/pytorch/torchtitan/pull/3602",
            QWEN3_8B,
            Layout(1, 4, tensor=4, sequence_parallel=True, engine_tensor=2),
            replicas=1,
            step_s=136,
        ),
        logprob_passes=1,  # a KL term, which later versions left out
    ),
    replace(
        _search_r1(
            "Qwen3 32B, 32 H100, torchtitan",
            "github.com/pytorch/torchtitan/pull/3704, one trainer node, direct RDMA",
            QWEN3_32B,
            Layout(1, 8, distributed_optimizer=True, recompute=True, engine_tensor=8),
            replicas=3,
            step_s=38,
        ),
        logprob_passes=0,
        phases=StepSeconds(generate=20, logprob=0, train=15, sync=4, other=0),
    ),
)
"""Published step times whose lengths are a guess; batch and layout of the first are a guess too."""


def predict(run: PublishedRun, rates: Rates) -> StepSeconds:
    """Estimate the step of a published run under some rates."""
    completion = run.turns * run.completion_tokens
    # A turn reads all that came before it: half of the total, in the mean over turns.
    call = Lengths(
        PROMPT_TOKENS + (run.turns - 1) / 2 * run.completion_tokens, run.completion_tokens, run.max_tokens
    )
    workload = Workload(
        calls=(GenerationCall(run.samples, run.samples // run.group_size, call),) * run.turns,
        train_samples=run.samples,
        lengths=Lengths(PROMPT_TOKENS, completion, run.turns * run.max_tokens),
        optimizer_steps=run.optimizer_steps,
        logprob_passes=run.logprob_passes,
        microbatch_tokens=run.microbatch_tokens,
        logprob_batch=run.logprob_batch,
        head_on_completions_only=False,
    )
    gpu = GPUS["h100-80g"]
    weights = total_elements(run.architecture) * 2 // run.layout.engine_tensor
    cache_bytes = int(ENGINE_SHARE * gpu.memory_bytes) - weights - ENGINE_WORKSPACE_BYTES
    engine = Engine(run.architecture, run.layout.engine_tensor, "bfloat16", cache_bytes, max_num_seqs=256)
    traffic = sync_bytes(run.architecture, run.layout, "bfloat16", "bfloat16")
    step = step_seconds(
        run.architecture, run.layout, workload, engine, traffic, "checkpoint", "bfloat16", gpu, rates
    )
    if run.engine_replicas is None:
        return step
    return replace(
        step,
        generate=rollout_seconds(workload.calls, workload.episodes, engine, run.engine_replicas, gpu, rates),
    )


@cache
def fitted_rates() -> Rates:
    """Fit the rates under which the plan of FITTED meets its published time in every phase.

    Every fitted rate enters its phase linearly, so two evaluations determine it.
    """
    wanted = FITTED.phases
    assert wanted is not None
    rates = Rates()
    for field, phase in (("layer_s", "train"), ("decode_step_s", "generate")):
        low, high = (
            getattr(predict(FITTED, replace(rates, **{field: value})), phase) for value in (0.0, 1e-3)
        )
        rates = replace(rates, **{field: (getattr(wanted, phase) - low) / (high - low) * 1e-3})
    traffic = sync_bytes(FITTED.architecture, FITTED.layout, "bfloat16", "bfloat16")
    return replace(rates, refit_rate=traffic.engine_weights / wanted.sync, step_s=wanted.other)
