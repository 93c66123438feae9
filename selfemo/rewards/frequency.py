"""Weights labels by inverse frequency.

This keeps rare emotions worth predicting if half the corpus is neutral.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from selfemo.corpora.conversation import Conversation


def label_shares(conversations: Sequence[Conversation], labels: Sequence[str]) -> dict[str, float]:
    """Count each label's share among the primary labels of annotated turns; all 0 if nothing is annotated."""
    counts = Counter(
        turn.labels[0] for conversation in conversations for turn in conversation.turns if turn.labels
    )
    total = counts.total()
    return {label: counts[label] / total if total else 0.0 for label in labels}


def frequency_weights(shares: Mapping[str, float], exponent: float, cap: float) -> dict[str, float]:
    """Weigh each label by min(cap, c * share ** -exponent), with c such that the mean over the split is 1.

    Args:
        shares: label shares of the training split.
        exponent: 0 gives every label weight 1.
        cap: largest weight, >= 1; a label that never occurs gets it (or 1 if exponent is 0).

    Raises:
        ValueError: cap below 1, for which no mean of 1 exists.
    """
    if cap < 1:
        raise ValueError(f"cap is {cap}, expected at least 1")
    if exponent == 0 or not any(shares.values()):
        return dict.fromkeys(shares, 1.0)
    raw = {label: share**-exponent for label, share in shares.items() if share > 0}
    capped: set[str] = set()
    while True:  # each round caps at least one label more
        free = [label for label in raw if label not in capped]
        mass = sum(shares[label] * raw[label] for label in free)
        scale = (1.0 - cap * sum(shares[label] for label in capped)) / mass if free else 0.0
        over = {label for label in free if scale * raw[label] > cap * (1 + 1e-12)}
        if not over:
            return {
                label: cap if label in capped or label not in raw else scale * raw[label] for label in shares
            }
        capped |= over
