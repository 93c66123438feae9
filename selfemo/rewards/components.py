"""The reward components, one function each. They know readings and label sets; nothing of prompts, weights or training.

All lie in [0, 1]. Formulas and their reasons: docs/method.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from selfemo.emotions.answer import Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.selfplay.consensus import Consensus


def alignment(reading: Reading, reference: Collection[str], score: SmoothedIoU) -> float:
    """a_i: smoothed IoU with the gold set, or with the consensus where nobody annotated; 0 for a format failure or an empty reference."""
    return score.of_reading(reading, reference) if reference else 0.0


def consistency(readings: Sequence[Reading], index: int, score: SmoothedIoU) -> float:
    """c_i: mean smoothed IoU of one sample with the others of its group; a format failure on either side counts 0; 0 for a lone sample."""
    others = [reading for i, reading in enumerate(readings) if i != index]
    if not others:
        return 0.0
    return sum(score.of_reading(readings[index], other.labels) for other in others if isinstance(other, Answer)) / len(others)


def consistency_gate(consensus: Consensus, gold: Collection[str] | None, low: float, high: float) -> bool:
    """gate(g): whether agreeing may be paid in this group.

    Annotated: only where the consensus' primary label is a gold label, since agreement on a wrong label deserves nothing. Unannotated:
    only where the mean pairwise smoothed IoU lies in [low, high], since below there is nothing to agree on, and above the
    group has collapsed to one answer. Paid everywhere, the bonus rewards answering with the majority label.
    """
    if not consensus.labels:
        return False
    if gold:
        return consensus.labels[0] in gold
    return low <= consensus.agreement <= high


def expression(reading: Reading | None, target: Collection[str], score: SmoothedIoU) -> float:
    """Smoothed IoU between the target set and what the recognizer read in a reply; 0 where a gate failed, so that nothing was read."""
    return score.of_reading(reading, target) if reading is not None else 0.0


def answer_format(reading: Reading) -> float:
    """f_i of a recognizer: 1 for an answer in the grammar."""
    return float(isinstance(reading, Answer))


def reply_format(gates: Collection[str]) -> float:
    """f_i of a responder: 1 for a reply that fails no gate."""
    return float(not gates)
