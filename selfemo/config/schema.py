"""Defines the whole configuration: a tree of frozen dataclasses, each field documented below it.

The sections of the method are in selfemo.config.method, shared types in selfemo.config.types.

A run is described by one YAML file plus dotted overrides (`train.learning_rate=1e-4`). pydantic
checks types, bounds and unknown keys as the file is read. `violations` (selfemo.config.checks)
checks several fields against each other and reports all problems together, so that one edit fixes a
configuration, not one edit per launch. Nothing here imports torch, since planning a run must not
load it.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from selfemo.config.method import AlgorithmConfig, FlywheelConfig, RewardConfig, SelfPlayConfig, SftConfig
from selfemo.config.types import (
    STRICT,
    CorpusName,
    Count,
    Decay,
    Dtype,
    NonNegative,
    PathList,
    PathText,
    Positive,
    PositiveFloat,
    Share,
    ViewName,
)

__all__ = [
    "FUSE_FROM_BYTES",
    "AlgorithmConfig",
    "CheckpointConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "FlywheelConfig",
    "ModelConfig",
    "ParallelConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SelfPlayConfig",
    "SftConfig",
    "SyncConfig",
    "TrackingConfig",
    "TrainConfig",
]

FUSE_FROM_BYTES = 2**30
"""Bytes of a micro-batch's logits on a rank above which `train.fuse_output_layer=auto` never
creates them. Memory decides, because a policy step takes the same matrix products either way: on a
CPU they are 98% of the fused time (docs/kernels.md; a GPU is unmeasured)."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The model to start from: a Hugging Face directory, or the shape of a small one to initialise."""

    path: PathText = ""
    """Hugging Face directory, or name on the hub with or without @revision, such as Qwen/Qwen3-8B: it is
    fetched into the cache once per node, and the run records the commit. Empty: initialise a small Qwen3
    of the shape below, with its own tokenizer."""
    vocab_size: Positive = 4096
    """Entries of the BPE tokenizer trained on the corpus (initialised models only)."""
    hidden_size: Positive = 256
    """Width of the hidden states (initialised models only)."""
    intermediate_size: Positive = 768
    """Width of the gated MLP (initialised models only)."""
    num_layers: Positive = 4
    """Transformer layers (initialised models only)."""
    num_heads: Positive = 8
    """Attention heads (initialised models only)."""
    num_kv_heads: Positive = 4
    """Key-value heads, shared by groups of query heads (initialised models only)."""
    head_dim: Positive = 32
    """Width of one head (initialised models only)."""
    tie_word_embeddings: bool = True
    """Share input embedding and output projection (initialised models only)."""
    max_length: Positive = 1024
    """Longest sequence, prompt and completion together, in tokens."""


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """How Megatron lays the model over ranks. Data parallelism takes the ranks that remain of the world."""

    tensor: Positive = 1
    """Tensor-parallel size: heads and MLP columns are split over this many ranks."""
    pipeline: Positive = 1
    """Pipeline-parallel size: layers are split over this many stages."""
    virtual_pipeline: Positive = 1
    """Model chunks per stage (interleaved schedule); 1 is the plain schedule."""
    context: Positive = 1
    """Ranks that share each sequence. Above 1 it needs Transformer Engine, so a GPU, and bf16
    (unmeasured); not with sequence ratios."""
    sequence_parallel: bool = False
    """Split activations along the sequence between tensor-parallel regions; needs tensor > 1."""
    distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks."""
    recompute: bool = False
    """Recompute every layer's activations in the backward pass instead of storing them."""


@dataclass(frozen=True, config=STRICT)
class CorpusConfig:
    """Which dialogues to train and evaluate on."""

    name: CorpusName = "auto"
    """Corpus reader. "auto" takes MELD if the data directory holds it, else the bundled corpus `everyday`;
    the run records which."""
    path: PathText = ""
    """Corpus directory or file. Empty: its usual place under $SELFEMO_DATA, or the bundled `everyday`."""
    dev_share: Share = 0.0
    """Share of the labelled training dialogues that become the dev split of a corpus without one, such as a
    single JSONL file; drawn by the run's seed. 0 draws none."""
    hold_out: PathList = ""
    """Other corpora (names or paths, separated by commas) whose dev and test texts training must
    not meet: MELD and EmoryNLP overlap."""
    labelled_share: Share = 1.0
    """Share of the labelled training dialogues that keep their labels, drawn by the run's seed and recorded
    by name. The others open episodes as bare text: nothing in a run sees their labels. Dev and test keep
    theirs."""
    unlabelled: PathList = ""
    """Further training dialogues without labels: names of corpora, whose training split is read, or paths of
    corpora or JSONL files, separated by commas. Labels that they hold are dropped in reading."""
    reveal_hidden: bool = False
    """The arm `oracle`, an upper bound: the labels that labelled_share hides are gold in the groups that open
    on those turns, and the target of the first reply to them. SFT, label shares, caps and transitions still
    do without them."""
    history_turns: Count = 4
    """Earlier turns shown to both roles."""
    max_turn_tokens: Positive = 64
    """Tokens at which a longer turn is cut in a prompt, at a token border."""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """The vLLM engine, which shares the trainer's GPUs."""

    tensor_parallel: Positive = 1
    """Ranks per engine; the world holds world_size / tensor_parallel replicas."""
    dtype: Dtype = "float32"
    """Weights and activations of the engine; auto as for train.dtype."""
    max_num_seqs: Positive = 128
    """Sequences decoded together per engine."""
    kv_cache_bytes: Positive = 268_435_456
    """Key-value cache per rank, in bytes."""
    sleep: bool = True
    """Free the engine's memory during training. This acts on a GPU only; the CPU engine stays resident."""
    lock_step: bool = False
    """Whether episodes wait for one another: the next step of all is one engine call. If false, each goes on
    once its own requests have ended, while others still generate. Samples are the same either way."""
    enforce_eager: bool = True
    """Skip CUDA graph capture; set false on GPUs for speed."""
    max_logprob_gap: PositiveFloat | None = None
    """Largest difference, in nats, between the logprobs that engine and trainer give a sampled token. A
    larger one ends the run: the two compute different models. null: what rounding explains, 0.0039 in fp32
    and 4 in bf16, divided by a temperature below 1 (selfemo/config/logprob_gap.py derives it)."""
    max_mean_logprob_gap: PositiveFloat | None = None
    """The same for the mean over a step's tokens; null: 0.00012 in fp32, 0.125 in bf16."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Megatron's optimizer and micro-batches."""

    dtype: Dtype = "float32"
    """Parameters and activations; gradients and optimizer state are fp32 either way. auto: bfloat16 on a GPU
    or where the processor computes in it (`selfemo doctor` tells), else float32; the run records which."""
    learning_rate: PositiveFloat = 2e-4
    """Peak rate of the SELF-GRPO stage."""
    warmup_steps: Count = 0
    """Optimizer steps of linear warm-up; an iteration has algorithm.updates_per_rollout of them. Adam starts
    self-play with no moments, and its first steps are as large as the rate allows."""
    final_learning_rate_share: Share = 1.0
    """Rate of the last step over the peak, approached on a straight line; 1 keeps the rate constant."""
    frozen_layers: Count = 0
    """Number of the lowest transformer layers that keep their weights in SFT and self-play, with the input
    embedding: no gradients, no optimizer state, no backward pass through them. A tied output layer is the
    embedding, so it is frozen too. 0 trains everything."""
    frozen_cache_bytes: Count = 0
    """Memory in which a rank keeps the frozen layers' output of the prompts and completions it has read, so
    that reference, rollout policy, training and later epochs do not compute it again. 0 keeps none."""
    frozen_cache_dir: PathText = ""
    """Directory in which this output is kept besides, for other runs that freeze the same layers of the same
    model: bytes of `dtype` times hidden size for each token. Empty: each run computes its own."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay, not applied to norms."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.95
    """Decay of the second moment."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    clip_grad: PositiveFloat = 1.0
    """Global gradient norm is scaled down to this."""
    max_skipped_steps: Positive = 5
    """Steps in a row whose loss or gradient is not finite that end the run, with the batch in
    output_dir/bad_batch. Fewer are skipped."""
    max_tokens_per_microbatch: Positive = 4096
    """Cap on a micro-batch's packed tokens, over the context ranks that share it and before
    padding. It must hold the longest sample."""
    share_prompts: bool = True
    """Pack a group's samples behind one copy of their prompt: its tokens are computed once per
    micro-batch, not once per sample. Without effect if parallel.context > 1. On a GPU it takes
    flash-attn's attention in place of Transformer Engine's."""
    attention_backend: Literal["auto", "flash", "fused", "unfused"] = "auto"
    """Attention kernel that Transformer Engine takes (GPU, where prompts are not shared): flash-attn's,
    cuDNN's fused one, or the slow one to compare with. "auto" leaves the choice to it; megatron-core refuses
    a run whose environment says otherwise in NVTE_FLASH_ATTN, NVTE_FUSED_ATTN or NVTE_UNFUSED_ATTN."""
    offload_during_rollout: bool = False
    """Move gradients and optimizer state to host memory while the engine generates (GPU)."""
    fuse_weight_gradients: bool = False
    """Let Transformer Engine's layers add weight gradients to the fp32 buffer in the matrix product, instead
    of writing them in bf16 for every micro-batch first (GPU; unmeasured)."""
    fuse_output_layer: Literal["auto", "on", "off"] = "auto"
    """Take the loss from hidden states, 512 tokens at a time, so that a micro-batch's logits never
    exist. "auto" does it for a micro-batch whose logits would take more than 1 GiB on a rank
    (completion tokens x vocabulary / parallel.tensor x bytes of train.dtype), as with long
    completions and thinking. Loss and gradients are the same; SFT and gspo then make logits twice."""

    def fuses_output_layer(self, logits_bytes: int) -> bool:
        """Return True if a micro-batch with `logits_bytes` of logits on a rank never creates them."""
        if self.fuse_output_layer == "auto":
            return logits_bytes > FUSE_FROM_BYTES
        return self.fuse_output_layer == "on"


@dataclass(frozen=True, config=STRICT)
class SyncConfig:
    """How weights go from Megatron into vLLM."""

    mode: Literal["auto", "checkpoint", "direct"] = "auto"
    """"checkpoint": full tensors through vLLM's loader. "direct": copies into its live parameters.
    "auto": direct if the engine allows it."""
    bucket_bytes: Positive = 268_435_456
    """Bytes gathered per round, which bounds the extra memory of a sync."""
    verify_every: Count = 1
    """Compare greedy probes with transformers every N syncs; 0: only at the first and after a resume."""
    checksum_every: Count = 1
    """Compare checksums of every tensor in trainer and engine every N syncs; 0 never does."""
    probe_tokens: Positive = 16
    """Length of a greedy probe, in tokens."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """Which held-out turns emotion recognition is evaluated on."""

    split: Literal["dev", "test"] = "dev"
    """Split that the run reports on."""
    limit: Count = 0
    """Evaluate the first N turns of the split; 0 is all of them."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """How often state is written, and how much of it stays on disk."""

    every: Count = 10
    """Iterations between checkpoints; 0 writes one, at the end."""
    sft_every: Count = 0
    """SFT steps between checkpoints; one is written after the stage in any case."""
    keep: Positive = 2
    """Newest checkpoints that stay on disk."""
    background: bool = True
    """Write tensors from a forked process while training goes on."""
    grace_s: Positive = 25
    """Seconds from SIGTERM or SIGUSR1 to the end of the process; without a checkpoint by then, it
    ends with an error. torchrun itself kills 30 s after a SIGTERM (TORCH_ELASTIC_SHUTDOWN_TIMEOUT)."""


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Where metrics.jsonl is shown besides `selfemo report`. TensorBoard's files are always
    written, to output_dir/tensorboard."""

    wandb: Literal["none", "offline", "online"] = "none"
    """Weights & Biases (pip install 'selfemo[wandb]'): not at all, into output_dir/wandb for `wandb
    sync`, or to the service."""
    wandb_project: str = "selfemo"
    """Weights & Biases project that the run appears in."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything that decides a run."""

    output_dir: PathText = "runs/demo"
    """Directory for results: new, or of this very run, which then goes on from its newest checkpoint."""
    seed: Count = 1
    """Seed from which every random draw of the run derives."""
    iterations: Count = 12
    """SELF-GRPO iterations (rollout, rewards, step, sync)."""
    timeout_s: Positive = 300
    """Deadline of a collective, engine call, training step or wait, in seconds; exceeding it ends the run."""
    startup_timeout_s: Positive = 1800
    """The same for rare work: building model and engine, writing and reading checkpoints, exporting."""
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    flywheel: FlywheelConfig = field(default_factory=FlywheelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def sft_views(self) -> tuple[ViewName, ...]:
        """Return the views that supervised examples are shown in."""
        return self.selfplay.views if self.sft.views is None else self.sft.views

    @property
    def teacher_reads_replies(self) -> bool:
        """Whether kept replies teach only after the next round's teacher has read them as they were meant."""
        play, is_taught = self.selfplay, self.algorithm.supervised_weight * self.flywheel.teach_share > 0
        has_reader = play.teacher != "policy" and play.rounds > 1
        return has_reader and is_taught and self.flywheel.teach_replies > 0
