"""Defines the sections of the configuration that decide the method: the supervised start, self-play, rewards,
the loss and the flywheel.

selfemo.config.schema puts them into RunConfig, and everything else imports them from there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from selfemo.config.types import (
    STRICT,
    AtLeastTwo,
    Count,
    LossName,
    NonNegative,
    PathText,
    Positive,
    PositiveFloat,
    Share,
    ViewName,
)


@dataclass(frozen=True, config=STRICT)
class SftConfig:
    """The supervised start. Without it no answer has the answer format, and every reward is equal."""

    steps: Count = 150
    """Optimizer steps; 0 skips the stage."""
    batch_size: Positive = 32
    """Examples per step over all ranks."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate; linear warm-up, then cosine decay."""
    final_learning_rate_share: Share = 0.1
    """Rate at the end of the decay, over the peak. From a large peak 0 can leave the better model."""
    warmup_steps: Count = 10
    """Steps of linear warm-up."""
    expression_share: Share = 0.25
    """Share of examples that teach the responder's task; the others teach the recognizer's."""
    label_balance: Share = 0.0
    """Show rare labels more often: each in proportion to (its share of turns) ** (1 - this)."""
    views: tuple[ViewName, ...] | None = None
    """Views that recognizer examples are shown in, one drawn for each example; null takes selfplay.views."""


@dataclass(frozen=True, config=STRICT)
class SelfPlayConfig:
    """Episodes: who speaks, how often, and how many candidates are sampled."""

    seeds_per_iteration: Positive = 16
    """Dialogue prefixes that start an episode, per iteration over all ranks."""
    turns: Count = 2
    """Turns generated per episode. 0 trains only the recognizer, on the seed's last turn."""
    recognizer_group_size: AtLeastTwo = 8
    """G: label sets sampled per turn to recognise."""
    views: tuple[ViewName, ...] = ("plain",)
    """Ways in which a turn to recognise is shown: its G samples are dealt over them, and each has one vote
    (docs/method.md)."""
    consensus: Literal["all", "other_views"] = "all"
    """What an answer is compared with if the turn has no annotation: the vote of all views, or of the views
    other than its own."""
    teacher: Literal["policy", "round_start", "average"] = "policy"
    """Whose consensus stands in for the annotation of a real turn without one. policy: the answers of its
    own group. round_start: those of the model at the start of the round, which reads the turns once, in all
    views. average: those of a moving average of these models. It is the KL reference too (docs/method.md)."""
    rounds: Positive = 1
    """Parts of equal length that the iterations are cut into; reference and teacher change between them."""
    teacher_memory: Share = 0.5
    """teacher=average: the old average's share where a round begins; the policy has the rest."""
    teacher_turns: Count = 0
    """Most turns that the teacher reads per round, those that episodes open on first; 0 reads all."""
    teacher_cache: PathText = ""
    """Directory of readings that runs share. One whose model, turns, views and engine are those of an earlier
    run takes from there what a teacher reads before the first optimizer step, as the arms of a study do;
    empty: every run reads for itself."""
    teacher_votes: Literal["answers", "probabilities"] = "answers"
    """What each view adds to the teacher's vote on a turn: the labels of its greedy answer, or its
    probability of each label as the answer's first, which tells how sure the view is (docs/method.md)."""
    teacher_words: NonNegative = 0.0
    """Weight, in a vote by probabilities, of what the words of the line alone say of its label, by a
    regression on the labelled turns. The views of one model err alike; words err elsewhere
    (docs/method.md)."""
    align_consensus: bool = False
    """Weigh the teacher's labels so that each is the likeliest as often as it is annotated. This trades
    accuracy for macro F1."""
    align_strength: Share = 1.0
    """Exponent of these weights: 1 aligns, 0.5 goes half of the way (docs/method.md)."""
    responder_group_size: AtLeastTwo = 4
    """M: replies sampled per turn to answer."""
    temperature: Annotated[float, Field(ge=0.01, le=2)] = 1.0
    """Sampling temperature of both roles. The bounds are the engine's: it refuses more, and samples at 0.01
    if it is asked for less."""
    max_answer_tokens: Positive = 12
    """Cap on a recognizer's answer, in tokens."""
    max_utterance_tokens: Positive = 32
    """Cap on a responder's utterance, in tokens."""
    min_utterance_words: Positive = 2
    """A shorter utterance earns no expression reward."""
    max_utterance_words: Positive = 40
    """A longer utterance earns no expression reward."""
    real_seed_share: Share = 0.5
    """Least share of an iteration's seeds that are real dialogues; others continue kept flywheel records."""
    unlabelled_share: Share | None = None
    """Share of the real seeds that end in a turn of a dialogue without labels; null: as they occur."""
    short_repeats: bool = False
    """Open on, and let a teacher read, turns that equal a short dev or test text ("Okay."), or that one
    follows. The supervised start learns from them in any case; a long repeat is never read
    (docs/corpora.md)."""
    seed_label_balance: Share = 0.0
    """How much labelled seeds favour rare labels: 0 follows their shares, 1 draws all labels equally."""
    target_flattening: Share = 0.0
    """The same for targets beyond the seed: 0 follows the transition prior, 1 draws all sets equally."""
    thinking: bool = False
    """Let the recognizer think before it answers, which needs a model whose template switches
    thinking (Qwen3) or opens it (Qwen3-Thinking-2507). The answer is parsed after the thoughts. False
    closes a block that the template opens."""
    max_thinking_tokens: Positive = 256
    """Room for thinking, in tokens, beside max_answer_tokens; thoughts cut there are a format failure."""

    @property
    def max_recognizer_tokens(self) -> int:
        """Cap on everything the recognizer generates for one answer, in tokens."""
        return self.max_answer_tokens + (self.max_thinking_tokens if self.thinking else 0)


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """Weights and gates of the reward components (docs/method.md)."""

    alignment_weight: NonNegative = 1.0
    """w_a: smoothed IoU with the gold set, or with the group's consensus if the turn has no annotation
    (selfplay.consensus)."""
    consistency_weight: NonNegative = 0.2
    """w_c: mean smoothed IoU with the other samples of the group, of its other views if it has several,
    behind the gate."""
    format_weight: NonNegative = 0.1
    """w_f: 1 for an answer in the grammar, 0 otherwise."""
    expression_weight: NonNegative = 1.0
    """w_e: smoothed IoU of the targets and the emotions the recognizer reads in the reply, behind
    the gates."""
    consistency_gate: bool = True
    """False pays consistency ungated, which rewards collapse to the majority label: for the ablation only."""
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
    """Weight of the KL to the reference policy (the SFT model). 0 needs no reference pass; null
    takes the preset's."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound for samples below their group's mean: a token's policy loss is at most -advantage *
    this, so that a ratio far above 1 cannot pull without limit (Ye et al. 2020, who take 3). null
    is off. It acts only if updates_per_rollout > 1, since ratios are 1 otherwise."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Estimator of the KL per token (Schulman 2020), with x = log p - log p_ref. k3 = exp(-x) + x -
    1 is the value without bias. k2 = x^2 / 2 has, on-policy, the gradient of the KL in the mean
    (Tang and Munos 2025, arXiv 2506.09477)."""
    range_threshold: NonNegative = 0.05
    """tau_range: below this alignment range a group of a gated loss carries no ranking and gets weight 0."""
    weight_by_consistency: bool = False
    """Scale a group's weight by its mean pairwise sIoU (gated losses)."""
    weight_by_frequency: bool = False
    """Scale a group's weight by its gold label's inverse-frequency weight
    (reward.frequency_exponent; gated losses). In the reward itself, dividing by the group's
    standard deviation would cancel that weight."""
    normalise: Literal["none", "std", "leave_one_out"] | None = None
    """How a group's rewards become advantages; null takes the preset's."""
    normalise_per_component: bool = False
    """Normalise every reward component by itself and add the results with the reward weights, so
    that a component with a small spread counts as much as its weight says. False normalises the
    weighted sum."""
    entropy_weight: NonNegative = 0.0
    """Entropy bonus per token."""
    truncated_importance_cap: PositiveFloat | None = None
    """Cap of the importance weight between rollout engine and trainer logprobs; null takes the preset's."""
    updates_per_rollout: Positive = 1
    """Optimizer steps per rollout batch; 1 is exactly on-policy and needs no old-logprob pass."""
    supervised_weight: NonNegative = 0.0
    """Weight of the loss on supervised examples that every step also learns from: labelled turns, shown as in
    the supervised start, and what the flywheel teaches (flywheel.teach_share). 0 has none."""
    supervised_batch_size: Positive = 16
    """Such examples per step over all ranks."""


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
    """...and at or below this one (above it, all answers agree and nothing is learned)..."""
    keep_expression: Share = 0.5
    """...whose expression sIoU is at least this."""
    trust_labels: bool = True
    """Count a kept record's labels as annotation when it seeds an episode. False: the consensus stands in."""
    rare_label_share: Share = 0.0
    """Cap on a label's share of kept records: its share of the training split, or this if smaller."""
    teach_share: Share = 0.0
    """Share of a step's supervised examples (algorithm.supervised_batch_size) that the flywheel gives: the
    consensus on real turns without labels, and kept replies, to be read and to be written."""
    teach_weight: NonNegative = 1.0
    """Weight of such an example; a labelled turn's is 1."""
    teach_labels: Positive = 1
    """How many of the teacher's likeliest labels a real turn teaches, by probabilities. Several divide the
    turn's weight by their shares in the vote: where it is split, the turn is taught so (docs/method.md)."""
    teach_replies: Share = 0.0
    """Share of such examples that come from kept replies, as far as there are any. With a teacher and several
    rounds, a reply teaches once the next round's teacher has read it, in all views, as it was meant."""
    near_duplicate: Share = 0.9
    """Token-set Jaccard similarity from which a kept text counts as a repeat."""
    candidates_per_iteration: Positive = 2048
    """Groups of an iteration that may be kept. One rank compares their texts with all kept ones; if more pass
    the rule, so many are taken, evenly spaced. Openings and lessons hold the newest 4,096."""
