"""Holds what was predicted of the kernels before any GPU ran them (docs/kernels.md).

The milliseconds are for an H100 and are judged there alone; shares of the card's copy bandwidth, which is
measured in the same run, are judged on every card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tools.kernels.gpu.rows import Timed

Rows = Mapping[tuple[str, int, str], Timed]
"""Timed formulas by workload, tokens and formula."""
OURS = "selfemo"
FORWARD, BOTH, PROJECTION = "vocab_stats", "forward and backward", "fused projection"
OURS_BOTH, EAGER_BOTH = "selfemo token_logprobs", "eager log_softmax"
LIGER_BOTH = "Liger triton_grpo_loss (no entropy)"
OURS_PROJECTION, GEMMS = "selfemo grpo_loss, fused", "the three GEMMs alone"


@dataclass(frozen=True)
class Prediction:
    """One predicted figure."""

    text: str
    needs: tuple[tuple[str, str], ...]
    """Workload and formula of the figures that it compares."""
    figure: Callable[..., float]
    """Takes the needed rows' medians in ms."""
    bound: float
    at_most: bool = True
    is_share: bool = False
    """Whether the figure is relative to the card, so that it is judged on any."""

    def holds(self, value: float) -> bool:
        """Whether a figure is on the predicted side of the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


PREDICTIONS = (
    Prediction("forward at most 0.95 ms", ((FORWARD, OURS),), lambda ms: ms, 0.95),
    Prediction("forward and backward at most 2.8 ms", ((BOTH, OURS_BOTH),), lambda ms: ms, 2.8),
    Prediction(
        "within 10% of Liger's token-level Triton kernel",
        ((BOTH, OURS_BOTH), (BOTH, LIGER_BOTH)),
        lambda ours, liger: ours / liger,
        1.10,
        is_share=True,
    ),
    Prediction(
        "at least 8 times faster than eager log_softmax with entropy",
        ((BOTH, OURS_BOTH), (BOTH, EAGER_BOTH)),
        lambda ours, eager: eager / ours,
        8.0,
        False,
        True,
    ),
    Prediction(
        "fused projection at most 1.10 times its three GEMMs",
        ((PROJECTION, OURS_PROJECTION), (PROJECTION, GEMMS)),
        lambda ours, gemms: ours / gemms,
        1.10,
        True,
        True,
    ),
)
PREDICTED_TOKENS = 8192
"""Tokens that the milliseconds are for; at other sizes the figure is that of as many tokens."""
SHARE_OF_COPY = (("vocab_stats", OURS), ("dlogits", OURS), (BOTH, OURS_BOTH))
"""Workloads that read or write every logit once: predicted at 85% or more of the copy bandwidth."""
LEAST_SHARE = 0.85


def compared(
    rows: Rows, tokens: int, copy_bytes_per_s: float | None, card: str
) -> list[tuple[str, str, str]]:
    """Return (prediction, figure, verdict) of each, at one number of tokens; `card` is "" on a CPU."""
    lines = []
    for prediction in PREDICTIONS:
        found = [rows.get((workload, tokens, formula)) for workload, formula in prediction.needs]
        times = [row.median_ms for row in found if row is not None and row.median_ms is not None]
        if len(times) < len(found):
            lines.append((prediction.text, "", "unmeasured"))
            continue
        value = prediction.figure(*times)
        if not prediction.is_share:
            value /= tokens / PREDICTED_TOKENS
        is_judged = card and (prediction.is_share or "H100" in card)
        verdict = ("met" if prediction.holds(value) else "MISSED") if is_judged else "not judged"
        lines.append((prediction.text, f"{value:.3g}", verdict))
    for workload, formula in SHARE_OF_COPY:
        row = rows.get((workload, tokens, formula))
        text = f"{workload} at least {LEAST_SHARE:.0%} of the copy bandwidth"
        if row is None or row.bytes_per_s is None or copy_bytes_per_s is None:
            lines.append((text, "", "unmeasured"))
            continue
        share = row.bytes_per_s / copy_bytes_per_s
        verdict = ("met" if share >= LEAST_SHARE else "MISSED") if card else "not judged"
        lines.append((text, f"{share:.0%}", verdict))
    return lines
