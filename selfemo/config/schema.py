"""The whole configuration: one tree of frozen dataclasses, each field documented where it stands.

A run is described by one YAML file plus dotted overrides (`train.learning_rate=1e-4`). Values are checked by pydantic (types,
bounds, unknown keys) as the file is read, and what concerns several fields at once by `validate`, which reports every
violation together, so that nobody mends a config one error per launch. No torch here: planning a run must not import it.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
FUSE_FROM_BYTES = 2**30
"""Logits of a micro-batch on a rank, in bytes, above which `train.fuse_output_layer=auto` does without them. A policy step
takes the same matrix products either way, and on a CPU they are 98% of the fused time (docs/kernels.md; a GPU is unmeasured):
memory decides."""
CorpusName = str
"""A reader of selfemo.corpora.readers, or "auto". Registries know their names, this file does not: config_file compares."""
ViewName = str
"""A view of selfemo.selfplay.views, which stands above this room: selfemo.commands.preflight compares."""
LossName = str
"""A preset of selfemo.kernels.config."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Which model: an existing Hugging Face directory, or the shape of a small one to initialise."""

    path: str = ""
    """Hugging Face directory to start from. Empty: initialise a small Qwen3 of the shape below, with its own tokenizer."""
    vocab_size: Positive = 4096
    """Entries of the BPE tokenizer trained on the corpus (initialised models only)."""
    hidden_size: Positive = 256
    """Width (initialised models only)."""
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
    """How Megatron lays the model over ranks; data parallelism takes what remains of the world."""

    tensor: Positive = 1
    """Tensor-parallel size: heads and MLP columns are split over this many ranks."""
    pipeline: Positive = 1
    """Pipeline-parallel size: layers are split over this many stages."""
    virtual_pipeline: Positive = 1
    """Model chunks per stage (interleaved schedule); 1 is the plain schedule."""
    context: Positive = 1
    """Ranks that share each sequence; above 1 needs Transformer Engine, so a GPU, and bf16 (unmeasured); not with sequence ratios."""
    sequence_parallel: bool = False
    """Split activations along the sequence between tensor-parallel regions; needs tensor > 1."""
    distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks."""
    recompute: bool = False
    """Recompute every layer's activations in the backward pass instead of storing them."""


@dataclass(frozen=True, config=STRICT)
class CorpusConfig:
    """Which dialogues."""

    name: CorpusName = "auto"
    """Corpus reader; "auto" takes MELD where the data directory holds it, else the bundled corpus `everyday`."""
    path: str = ""
    """Corpus directory or file. Empty: the corpus's usual place under $SELFEMO_DATA, or the bundled files for `everyday`."""
    hold_out: str = ""
    """Other corpora (names or paths, separated by commas) whose dev and test texts training must not meet: MELD and EmoryNLP overlap."""
    history_turns: Count = 4
    """Earlier turns shown to both roles."""
    max_turn_tokens: Positive = 64
    """A turn longer than this is cut in a prompt, at a token border."""


@dataclass(frozen=True, config=STRICT)
class SftConfig:
    """The supervised start: without it the model does not follow the answer format and every reward is equal."""

    steps: Count = 150
    """Optimizer steps; 0 skips the stage."""
    batch_size: Positive = 32
    """Examples per step over all ranks."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate; linear warm-up, cosine decay to a tenth."""
    warmup_steps: Count = 10
    """Steps of linear warm-up."""
    expression_share: Share = 0.25
    """Share of examples that teach the responder's task; the others teach the recognizer's."""
    label_balance: Share = 0.0
    """How far rare labels are shown more often: a label's share of examples is proportional to (its share of turns) ** (1 - this)."""
    views: tuple[ViewName, ...] | None = None
    """Views that recognizer examples are shown in, one drawn for each example; null takes selfplay.views."""


@dataclass(frozen=True, config=STRICT)
class SelfPlayConfig:
    """Episodes: who speaks, how often, and how many candidates are sampled."""

    seeds_per_iteration: Positive = 16
    """Dialogue prefixes that start an episode, per iteration over all ranks."""
    turns: Count = 2
    """Turns generated per episode; 0 trains understanding alone on the seed's last turn."""
    recognizer_group_size: AtLeastTwo = 8
    """G: label sets sampled per turn to recognise."""
    views: tuple[ViewName, ...] = ("plain",)
    """Ways in which a turn to recognise is shown: its G samples are dealt over them, and each has one vote
    (docs/method.md)."""
    consensus: Literal["all", "other_views"] = "all"
    """What an answer is compared with where nothing is annotated: the vote of all views, or of the views
    other than its own."""
    responder_group_size: AtLeastTwo = 4
    """M: replies sampled per turn to answer."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of both roles."""
    max_answer_tokens: Positive = 12
    """Cap on a recognizer's answer, in tokens."""
    max_utterance_tokens: Positive = 32
    """Cap on a responder's utterance, in tokens."""
    min_utterance_words: Positive = 2
    """A shorter utterance earns no expression reward."""
    max_utterance_words: Positive = 40
    """A longer utterance earns no expression reward."""
    real_seed_share: Share = 0.5
    """At least this share of an iteration's seeds are real dialogues; the others continue kept flywheel records."""
    seed_label_balance: Share = 0.0
    """How far real seeds favour rare labels: 0 follows the training split's shares, 1 draws every label equally often."""
    target_flattening: Share = 0.0
    """Same for the target emotions drawn beyond the seed: 0 follows the transition prior, 1 draws every label set alike."""
    thinking: bool = False
    """Let the recognizer think before it answers (a model whose template switches it, such as Qwen3); the answer is parsed after that."""
    max_thinking_tokens: Positive = 256
    """With thinking: room for it, in tokens, beside max_answer_tokens; thoughts that are not closed by then are a format failure."""

    @property
    def max_recognizer_tokens(self) -> int:
        """Cap on everything the recognizer generates for one answer, in tokens."""
        return self.max_answer_tokens + (self.max_thinking_tokens if self.thinking else 0)


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """Weights and gates of the reward components (docs/method.md)."""

    alignment_weight: NonNegative = 1.0
    """w_a: smoothed IoU with the gold set, or with the group's consensus where nothing is annotated
    (selfplay.consensus)."""
    consistency_weight: NonNegative = 0.2
    """w_c: mean smoothed IoU with the other samples of the group, of its other views where it has several,
    behind the gate."""
    format_weight: NonNegative = 0.1
    """w_f: 1 for an answer in the grammar, 0 otherwise."""
    expression_weight: NonNegative = 1.0
    """w_e: smoothed IoU between the target emotions and those the recognizer reads in the reply, behind the gates."""
    consistency_gate: bool = True
    """False pays consistency ungated, which rewards collapse to the majority label: for the ablation alone."""
    consistency_low: Share = 0.5
    """tau_low: an unannotated group pays consistency only above this mean pairwise sIoU."""
    consistency_high: Share = 0.95
    """tau_high: and only below this one."""
    smoothing: Annotated[float, Field(ge=0, le=0.1)] = 0.05
    """e of the smoothed IoU."""
    affinity: Literal["identity", "circumplex"] = "identity"
    """Similarity of labels in the smoothed IoU: none, or distance on the valence-arousal circumplex."""
    frequency_exponent: Share = 0.0
    """Weight alignment by (1 / label share) ** exponent, mean 1 over the training split; 0 is off."""
    frequency_cap: Annotated[float, Field(ge=1)] = 4.0
    """Largest such weight."""


@dataclass(frozen=True, config=STRICT)
class AlgorithmConfig:
    """The policy-gradient loss: SELF-GRPO and the variants it is compared with."""

    loss: LossName = "self_grpo"
    """Named preset of aggregation, normalisation, clipping and group weighting."""
    clip_low: PositiveFloat | None = None
    """Ratio clip below 1; null takes the preset's."""
    clip_high: PositiveFloat | None = None
    """Ratio clip above 1; null takes the preset's."""
    kl_beta: NonNegative | None = None
    """Weight of the KL to the reference policy (the SFT model); 0 needs no reference pass; null takes the preset's."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound for samples below their group's mean: a token's policy loss is at most -advantage * this, so that a ratio far
    above 1 cannot pull without limit (Ye et al. 2020, who take 3); null is off. Acts where updates_per_rollout > 1: ratios are
    1 otherwise."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """KL per token (Schulman 2020), x = log p - log p_ref: k3 = exp(-x) + x - 1, the value without bias; k2 = x^2 / 2, whose
    gradient is on-policy that of the KL in the mean (Tang and Munos 2025, arXiv 2506.09477)."""
    range_threshold: NonNegative = 0.05
    """tau_range: a group of a gated loss (SELF-GRPO) whose alignment range is smaller carries no ranking and gets weight 0."""
    weight_by_consistency: bool = False
    """Scale a group's weight by its mean pairwise sIoU (gated losses)."""
    weight_by_frequency: bool = False
    """Scale a group's weight by its gold label's inverse-frequency weight (reward.frequency_exponent; gated losses), which dividing
    by the group's standard deviation would cancel."""
    normalise: Literal["none", "std", "leave_one_out"] | None = None
    """How a group's rewards become advantages; null takes the preset's."""
    normalise_per_component: bool = False
    """Normalise every reward component by itself and add the results with the reward weights, so that a component with a small
    spread counts as much as its weight says; False normalises the weighted sum."""
    entropy_weight: NonNegative = 0.0
    """Entropy bonus per token."""
    truncated_importance_cap: PositiveFloat | None = None
    """Cap of the importance weight between rollout engine and trainer logprobs; null takes the preset's."""
    updates_per_rollout: Positive = 1
    """Optimizer steps per rollout batch; 1 is exactly on-policy and needs no old-logprob pass."""


@dataclass(frozen=True, config=STRICT)
class FlywheelConfig:
    """Which self-generated samples are kept and fed back."""

    enabled: bool = True
    """False keeps nothing and starts every episode from a real dialogue."""
    keep_annotated: Share = 0.5
    """Keep an annotated group's best sample at or above this sIoU."""
    keep_low: Share = 0.5
    """Keep a self-generated sample at or above this mean pairwise sIoU..."""
    keep_high: Share = 0.95
    """...and at or below this one (above it, everything agrees and nothing is learned)."""
    keep_expression: Share = 0.5
    """...whose expression sIoU is at least this."""
    trust_labels: bool = True
    """A kept record's labels count as annotation when its dialogue seeds an episode; False: the group's consensus stands in."""
    rare_label_share: Share = 0.0
    """A label's share of what is kept is capped at its share of the training split, or at this where that is smaller."""
    near_duplicate: Share = 0.9
    """Token-set Jaccard similarity from which a kept text counts as a repeat."""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """The colocated vLLM engine."""

    tensor_parallel: Positive = 1
    """Ranks per engine; the world holds world_size / tensor_parallel replicas."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations of the engine."""
    max_num_seqs: Positive = 128
    """Sequences decoded together per engine."""
    kv_cache_bytes: Positive = 268_435_456
    """Key-value cache per rank, in bytes."""
    sleep: bool = True
    """Free the engine's memory during training (GPU; the CPU engine stays resident and this does nothing)."""
    enforce_eager: bool = True
    """Skip CUDA graph capture; set false on GPUs for speed."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Megatron's optimizer and micro-batches."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameters and activations; gradients and optimizer state are fp32 either way."""
    learning_rate: PositiveFloat = 2e-4
    """Peak rate of the SELF-GRPO stage."""
    warmup_steps: Count = 0
    """Steps of linear warm-up."""
    final_learning_rate_share: Share = 1.0
    """Rate of the last iteration as a share of the peak, approached on a straight line; 1 keeps the rate constant."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay, not applied to norms."""
    adam_beta1: Share = 0.9
    """Decay of the first moment."""
    adam_beta2: Share = 0.95
    """Decay of the second moment."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    clip_grad: PositiveFloat = 1.0
    """Global gradient norm is scaled down to this."""
    max_skipped_steps: Positive = 5
    """Steps whose loss or gradient is not finite are skipped; this many in a row stop the run, with the batch in output_dir/bad_batch."""
    max_tokens_per_microbatch: Positive = 4096
    """Cap on a micro-batch's packed tokens, over the context ranks that share it and before padding; must hold the longest sample."""
    share_prompts: bool = True
    """Pack a group's samples behind one copy of their prompt: its tokens are computed once per micro-batch, not once per sample. Without
    effect where parallel.context > 1. On a GPU it takes flash-attn's attention in place of Transformer Engine's."""
    offload_during_rollout: bool = False
    """Move gradients and optimizer state to host memory while the engine generates (GPU)."""
    fuse_output_layer: Literal["auto", "on", "off"] = "auto"
    """Take the loss from hidden states, 512 tokens at a time, so that a micro-batch's logits never exist. "auto" does it for a
    micro-batch whose logits would take more than 1 GiB on a rank (completion tokens x vocabulary / parallel.tensor x bytes of
    train.dtype): long completions, as with thinking. Loss and gradients are the same; SFT and gspo then make logits twice."""

    def fuses_output_layer(self, logits_bytes: int) -> bool:
        """Whether a micro-batch whose logits would take `logits_bytes` on a rank does without them."""
        if self.fuse_output_layer == "auto":
            return logits_bytes > FUSE_FROM_BYTES
        return self.fuse_output_layer == "on"


@dataclass(frozen=True, config=STRICT)
class SyncConfig:
    """Weights from Megatron into vLLM."""

    mode: Literal["auto", "checkpoint", "direct"] = "auto"
    """Full tensors through vLLM's loader, or direct copies into its live parameters; auto: direct where the engine allows it."""
    bucket_bytes: Positive = 268_435_456
    """Gathered per round, in bytes: bounds the extra memory of a sync."""
    verify_every: Count = 1
    """Compare greedy probes with transformers every N syncs (0: only the first and after a resume)."""
    checksum_every: Count = 1
    """Compare checksums of every tensor in trainer and engine every N syncs; 0 never does."""
    probe_tokens: Positive = 16
    """Length of a greedy probe, in tokens."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """Emotion recognition on a held-out split."""

    split: Literal["dev", "test"] = "dev"
    """Split that the run reports."""
    limit: Count = 0
    """Evaluate the first N turns of the split; 0 is all of them."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """When state is written."""

    every: Count = 10
    """Iterations between checkpoints; 0 writes one, at the end."""
    sft_every: Count = 0
    """SFT steps between checkpoints; one is written after the stage in any case."""
    keep: Positive = 2
    """Newest checkpoints that stay on disk."""
    background: bool = True
    """Write tensors from a forked process while training goes on."""
    grace_s: Positive = 25
    """From SIGTERM or SIGUSR1 to the end of the process: without a checkpoint by then, it ends with an error. torchrun itself kills
    30 s after a SIGTERM (TORCH_ELASTIC_SHUTDOWN_TIMEOUT)."""


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Where metrics.jsonl is shown besides `selfemo report`. TensorBoard's files are always written, to output_dir/tensorboard."""

    wandb: Literal["none", "offline", "online"] = "none"
    """Weights & Biases (pip install 'selfemo[wandb]'): not at all, into output_dir/wandb for `wandb sync`, or to the service."""
    wandb_project: str = "selfemo"
    """Project that the run appears in."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything that decides a run."""

    output_dir: str = "runs/demo"
    """Where results go; must be new, or hold this very run, which then goes on from its newest checkpoint."""
    seed: int = 1
    """Every random draw of the run derives from this."""
    iterations: Count = 12
    """SELF-GRPO iterations (rollout, rewards, step, sync)."""
    timeout_s: Positive = 300
    """Deadline of a collective, an engine call, a training step or a wait, in seconds: a rank that exceeds it ends the run."""
    startup_timeout_s: Positive = 1800
    """The same for what a run does once or rarely: building model and engine, writing and reading checkpoints, exporting."""
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
        """Views that supervised examples are shown in."""
        return self.selfplay.views if self.sft.views is None else self.sft.views
