"""Finds the longest prompts of a corpus.

A run whose sequences are too short for them is refused before anything is generated.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Conversation
from selfemo.emotions.answer import MAX_LABELS
from selfemo.rollout.api import GenerationRequest
from selfemo.selfplay.openings import opening_turns
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.views import PLAIN, view_named

MEASURED = 8
"""Number of windows that are encoded: those with the most characters, which mostly, though not always, have
the most tokens."""


def longest_requests(
    prompts: PromptBuilder,
    conversations: Sequence[Conversation],
    config: SelfPlayConfig,
    views: Sequence[str] = (),
) -> list[GenerationRequest]:
    """Build both roles' requests at the longest windows of these dialogues: earlier turns, an opening turn,
    and room to answer.

    They are no upper bound for self-play, whose prompts also show turns that the model wrote. Every generator
    call is therefore checked again.

    Args:
        views: those that turns are shown in, besides the plain one.
    """
    shown_in = [view_named(name) for name in dict.fromkeys((PLAIN.name, *views))]
    places = [(c, i) for c in conversations for i in opening_turns(c)]
    shown = prompts.history_turns + 1
    longest = heapq.nlargest(
        MEASURED,
        places,
        key=lambda place: sum(
            len(turn.text) for turn in place[0].turns[max(0, place[1] + 1 - shown) : place[1] + 1]
        ),
    )
    requests = []
    for conversation, index in longest:
        turns = conversation.turns[: index + 1]
        target = turns[-1].labels[:MAX_LABELS] or prompts.labels[:1]
        asked = prompts.respond(turns, turns[-1].speaker, target)
        read = [prompts.recognize(turns, view) for view in shown_in]
        requests += [GenerationRequest(prompt, 0, config.max_recognizer_tokens, 0.0) for prompt in read]
        requests.append(GenerationRequest(asked, 0, config.max_utterance_tokens, 0.0))
    return requests
