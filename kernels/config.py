"""Defines the loss as one frozen configuration, of which GRPO, Dr.GRPO, DAPO, GSPO and SELF-GRPO are
settings.

The variants differ in four independent choices: how rewards become advantages, whether the ratio is per
token or per sequence, how tokens are averaged, and how the ratio is clipped. Each choice is a field, so
a comparison between two variants is a comparison between two values. Averages are taken with *global*
counts (`BatchCounts`): a loss divided by its own micro-batch's token count depends on how the batch was
split, which is a silent change of the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Normalise = Literal["none", "std", "leave_one_out"]
Aggregation = Literal["sequence_mean", "token_mean", "sequence_sum"]
RatioLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class AdvantageConfig:
    """How the rewards of one group become advantages."""

    normalise: Normalise = "std"
    """"std": (r - mean) / (std + epsilon), std with n - 1 below the line. "none": r - mean (Dr.GRPO).
    "leave_one_out": r minus the mean of the others (RLOO, Ahmadian et al. 2024).
    """
    per_component: bool = False
    """Normalise every reward component by itself and sum the results with the weights, instead of
    summing first.
    """
    epsilon: float = 1e-6
    """Added to the standard deviation."""
    range_threshold: float = 0.0
    """A group whose reward range (largest minus smallest) is below this has weight 0, because its
    ranking is noise. 0 gates nothing.
    """
    range_component: int | None = None
    """Component whose range is compared; None takes the weighted sum."""

    def __post_init__(self) -> None:
        _one_of("normalise", self.normalise, ("none", "std", "leave_one_out"))
        _at_least("epsilon", self.epsilon, 0.0)
        _at_least("range_threshold", self.range_threshold, 0.0)
        if self.range_component is not None and self.range_component < 0:
            raise ValueError(
                f"range_component is {self.range_component}: expected a component index from 0, or None"
            )


@dataclass(frozen=True)
class LossConfig:
    """The policy-gradient loss. `LossConfig.preset` names the published variants."""

    ratio_level: RatioLevel = "token"
    """"token": one ratio per token. "sequence": every token of a completion has the completion's
    length-normalised ratio (GSPO, Zheng et al. 2025).
    """
    aggregation: Aggregation = "sequence_mean"
    """"sequence_mean": mean over tokens, then over sequences. "token_mean": mean over all tokens
    (DAPO). "sequence_sum": sum over tokens divided by `max_length`, then mean over sequences (Dr.GRPO).
    """
    max_length: int | None = None
    """The constant divisor of "sequence_sum", in tokens."""
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low. math.inf here and in clip_high turns clipping off."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = None
    """For negative advantages the token's policy loss is at most -advantage * dual_clip (Ye et al.
    2020). Above 1, or None for no such limit.
    """
    kl_beta: float = 0.0
    """Weight of the KL divergence to the reference; above 0 needs `ref_logprob_T`."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Per-token estimator of the KL divergence (Schulman 2020): k2 = (logp - ref)^2 / 2, k3 = exp(ref -
    logp) - (ref - logp) - 1.

    His k1 = logp - ref is left out, because as a loss it holds nothing back: its gradient, that of
    logp, has mean 0 (Tang and Munos 2025, arXiv 2506.09477).
    """
    truncated_importance_cap: float | None = None
    """Multiply a token's policy loss by min(exp(old - rollout), cap), detached. Has no effect without
    `rollout_logprob_T`.
    """
    entropy_weight: float = 0.0
    """Weight of the entropy bonus, averaged like the policy loss."""
    temperature: float = 1.0
    """Logits are divided by this first. It is the temperature that the completions were sampled with."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """The configuration of `group_advantages`."""

    def __post_init__(self) -> None:
        _one_of("ratio_level", self.ratio_level, ("token", "sequence"))
        _one_of("aggregation", self.aggregation, ("sequence_mean", "token_mean", "sequence_sum"))
        _one_of("kl_estimator", self.kl_estimator, ("k2", "k3"))
        for name in ("clip_low", "clip_high", "kl_beta", "entropy_weight"):
            _at_least(name, getattr(self, name), 0.0)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}: expected a finite number above 0")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip is {self.dual_clip}: expected a number above 1, or None")
        if self.truncated_importance_cap is not None and not self.truncated_importance_cap > 0:
            raise ValueError(
                f"truncated_importance_cap is {self.truncated_importance_cap}: expected a number "
                "above 0, or None"
            )
        if self.aggregation == "sequence_sum" and (self.max_length is None or self.max_length < 1):
            raise ValueError(
                f"max_length is {self.max_length}: aggregation 'sequence_sum' divides by it, so "
                "expected at least 1"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LossConfig:
        """Return the variant that `PRESETS` holds under `name`, with `changes` to any field.

        Raises:
            ValueError: no preset has that name; or the preset needs `max_length` and `changes` lacks it.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} does not exist: expected one of {', '.join(sorted(PRESETS))}")
        return replace(cls(), **{**PRESETS[name].settings, **changes})


@dataclass(frozen=True)
class Preset:
    """A named variant of the loss, with everything this program asks of a variant: no other code looks
    at its name.
    """

    title: str
    """Its name in reports."""
    settings: Mapping[str, Any]
    """Fields of LossConfig that differ from their defaults."""
    gated: bool = False
    """Give weight 0 to a group whose scores range less than `algorithm.range_threshold`, and obey
    `algorithm.weight_by_*`.
    """

    @property
    def ratio_level(self) -> RatioLevel:
        """One ratio per token, or per sequence. A rank that holds part of a sequence cannot compute the
        latter.
        """
        return self.settings.get("ratio_level", LossConfig.ratio_level)

    @property
    def advantage(self) -> AdvantageConfig:
        """How rewards become advantages."""
        return self.settings.get("advantage", AdvantageConfig())

    @property
    def needs_max_length(self) -> bool:
        """Whether the loss divides by the longest completion's length, which `LossConfig.max_length`
        then has to give.
        """
        return self.settings.get("aggregation") == "sequence_sum"


@dataclass(frozen=True)
class BatchCounts:
    """Sizes of the whole optimizer step: every micro-batch on every data-parallel rank.

    With them the losses of micro-batches and ranks are terms of a plain sum.
    """

    sequences: int
    """Completions with at least one unmasked token."""
    tokens: int
    """Unmasked tokens."""

    def __post_init__(self) -> None:
        for name in ("sequences", "tokens"):
            _at_least(f"counts.{name}", getattr(self, name), 0)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")


def _at_least(name: str, value: float, bound: float) -> None:
    if not value >= bound:
        raise ValueError(f"{name} is {value}: expected at least {bound:g}")


PRESETS: dict[str, Preset] = {
    "self_grpo": Preset(
        "SELF-GRPO",
        {
            "clip_high": 0.28,
            "kl_beta": 0.02,
            "truncated_importance_cap": 2.0,
            "advantage": AdvantageConfig(range_threshold=0.05, range_component=0),
        },
        gated=True,
    ),
    "grpo": Preset("GRPO", {"kl_beta": 0.04}),
    "dr_grpo": Preset(
        "Dr. GRPO", {"aggregation": "sequence_sum", "advantage": AdvantageConfig(normalise="none")}
    ),
    "dapo": Preset("DAPO", {"aggregation": "token_mean", "clip_high": 0.28}),
    "gspo": Preset("GSPO", {"ratio_level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}),
}
"""The variants, by the name that a configuration writes in `algorithm.loss`.

grpo: Shao et al. 2024 (DeepSeekMath). dr_grpo: Liu et al. 2025. dapo: Yu et al. 2025. gspo: Zheng et
al. 2025. self_grpo: this project's reading of SELF-EMO (arXiv 2604.18003); docs/method.md tells the
paper's part from ours.
"""
