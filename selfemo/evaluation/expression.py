"""Measures expression on held-out dialogues: whether a reply shows the emotion it was asked for.

The model answers each turn that someone else answered in the corpus, aiming at that answer's annotated
emotions. A frozen recognizer that never trained with the model reads the reply without knowing the
target. It is the SFT model, not the trained one: a pair trained together can agree on a private code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_seed
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.corpora.words import words
from selfemo.emotions.answer import MAX_LABELS, Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.evaluation.turns import EvaluationTurn
from selfemo.rollout.api import Generator
from selfemo.selfplay.gates import Gate
from selfemo.selfplay.prompts import PromptBuilder, clean_line
from selfemo.selfplay.roles import Recognizer, Responder


@dataclass(frozen=True)
class Reply:
    target: tuple[str, ...]
    text: str
    gates: tuple[Gate, ...]
    reading: Reading | None
    """Emotions that the recognizer read; None if a gate failed."""
    score: float
    """Smoothed IoU of reading and target; 0 if a gate failed."""


@dataclass(frozen=True)
class ExpressionReport:
    """How consistently a model expresses the emotions it is asked for."""

    n: int
    siou: float
    """Mean score."""
    primary_hit_rate: float
    """Share of replies read with the target's primary label first."""
    gate_failures: tuple[tuple[str, int], ...]
    """(gate, replies that failed it), most frequent first."""
    per_target: tuple[tuple[str, int, float], ...]
    """(primary target label, replies, mean score), alphabetical."""
    distinct_replies: float
    """Share of different texts among the replies. Near 0, the model has one answer for everything."""
    distinct_bigrams: float
    """Share of different word pairs among all word pairs of the replies (distinct-2, Li et al. 2016)."""
    replies: tuple[Reply, ...] = field(repr=False)


def evaluate_expression(
    responder: Generator,
    recognizer: Generator,
    prompts: PromptBuilder,
    turns: Sequence[EvaluationTurn],
    config: SelfPlayConfig,
    score: SmoothedIoU,
    run_seed: int,
    recognizer_prompts: PromptBuilder | None = None,
    recognizer_config: SelfPlayConfig | None = None,
) -> ExpressionReport:
    """Let the model answer every turn that has an annotated answer by another speaker, and have the
    replies read.

    Args:
        responder: the evaluated model; samples at config.temperature, one call.
        recognizer: the frozen reader; greedy, one call.
        recognizer_prompts: the reader's prompts if it has another tokenizer; else `prompts`.
        recognizer_config: the reader's settings if they differ, such as thinking and room for it; else
            `config`.

    Raises:
        UserError: no turn has an annotated answer by another speaker.
    """
    asked = [(turn, turn.next_turn) for turn in turns]
    pairs = [
        (turn, reply)
        for turn, reply in asked
        if reply is not None and reply.labels and reply.speaker != turn.context[-1].speaker
    ]
    if not pairs:
        raise UserError(
            "evaluation: no turn of the split has an annotated answer by another speaker, so expression "
            "cannot be measured; choose another split"
        )
    speaking, reading_role = (
        Responder(prompts, config),
        Recognizer(recognizer_prompts or prompts, recognizer_config or config),
    )
    requests = [
        speaking.request(
            prompts.respond(turn.context, reply.speaker, reply.labels[:MAX_LABELS]),
            derive_seed(run_seed, "expression", i),
        )
        for i, (turn, reply) in enumerate(pairs)
    ]
    gated = [
        speaking.gate(turn.context, reply.speaker, completion)
        for (turn, reply), completion in zip(pairs, responder.generate(requests), strict=True)
    ]
    spoken = [
        (*turn.context, Turn(reply.speaker, clean_line(text)))
        for (turn, reply), (text, failed) in zip(pairs, gated, strict=True)
        if not failed
    ]
    readings = reading_role.read_last_turns(recognizer, spoken)
    replies = []
    for (_, reply), (text, failed) in zip(pairs, gated, strict=True):
        target, reading = reply.labels[:MAX_LABELS], None if failed else readings.pop(0)
        replies.append(
            Reply(
                target, text, failed, reading, 0.0 if reading is None else score.of_reading(reading, target)
            )
        )
    return summarise(replies)


def summarise(replies: Sequence[Reply]) -> ExpressionReport:
    """Make the report of replies already read; ValueError if there are none."""
    if not replies:
        raise ValueError("replies is empty: there is nothing to report")
    hits = [
        isinstance(reply.reading, Answer) and reply.reading.primary == reply.target[0] for reply in replies
    ]
    by_target: dict[str, list[float]] = {}
    for reply in replies:
        by_target.setdefault(reply.target[0], []).append(reply.score)
    spoken = [words(reply.text) for reply in replies]
    bigrams = [pair for line in spoken for pair in pairwise(line)]
    return ExpressionReport(
        n=len(replies),
        siou=sum(reply.score for reply in replies) / len(replies),
        primary_hit_rate=sum(hits) / len(hits),
        gate_failures=tuple(Counter(gate for reply in replies for gate in reply.gates).most_common()),
        per_target=tuple(
            (label, len(scores), sum(scores) / len(scores)) for label, scores in sorted(by_target.items())
        ),
        distinct_replies=len({tuple(line) for line in spoken}) / len(replies),
        distinct_bigrams=len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        replies=tuple(replies),
    )
