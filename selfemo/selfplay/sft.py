"""Makes the examples of the supervised start.

They are prompts of both roles, answered as the training split's annotators and speakers did.

Example k of a run is a pure function of k, as an opening of self-play is. Replies that self-play would gate
(a label named, too long or too short) are not taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_rng, derive_seed
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Conversation, Turn
from selfemo.corpora.words import words
from selfemo.emotions.answer import MAX_LABELS
from selfemo.selfplay.gates import leaks_label
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.records import Role
from selfemo.selfplay.schedule import Schedule, interleave
from selfemo.selfplay.views import PLAIN, view_named


@dataclass(frozen=True)
class SftExample:
    """One prompt, and the completion to teach."""

    role: Role
    prompt_ids: tuple[int, ...] = field(repr=False)
    completion_ids: tuple[int, ...] = field(repr=False)
    """Its last token is the end-of-turn token."""


class SftExamples:
    """The supervised examples of a training split, in a fixed order."""

    def __init__(
        self,
        train: Sequence[Conversation],
        prompts: PromptBuilder,
        config: SelfPlayConfig,
        run_seed: int,
        expression_share: float,
        max_length: int,
        label_balance: float = 0.0,
        views: Sequence[str] = (PLAIN.name,),
    ) -> None:
        """Find the turns to teach from.

        Args:
            config: bounds of a reply.
            expression_share: share of examples that teach the responder's task.
            max_length: the model's longest sequence, in tokens.
            label_balance: as Schedule.balance; 0 shows every turn once per epoch.
            views: each recognizer example is shown in one of them, drawn by its slot.

        Raises:
            UserError: no annotated turn to learn recognition from, or no reply to learn expression from while
                its share is positive.
        """
        self._prompts = prompts.without_thinking()
        self._config = config
        self._max_length = max_length
        self._run_seed = run_seed
        self._views = tuple(views)
        places = [(c, i) for c in train for i, turn in enumerate(c.turns) if turn.labels]
        replies = [(c, i) for c, i in places if i > 0 and self._teachable(c, i)]
        if not places or (expression_share > 0 and not replies):
            missing = (
                "annotated turn"
                if not places
                else "annotated reply that self-play would accept (sft.expression_share is above 0)"
            )
            raise UserError(
                f"corpus: the training split holds no {missing}; check its labels, or choose another corpus"
            )
        self._share = expression_share
        self._places = {"recognizer": places, "responder": replies}
        self._schedules = {
            role: Schedule(
                tuple(c.turns[i].labels[0] for c, i in items), label_balance, run_seed, f"sft {role}"
            )
            for role, items in self._places.items()
            if items
        }

    def example(self, slot: int) -> SftExample:
        """Make the example of one slot. Step k of a run has the slots from k times its batch size on.

        Raises:
            UserError: prompt and completion are longer than the model's longest sequence.
        """
        expression, index = interleave(slot, self._share)
        role: Role = "responder" if expression else "recognizer"
        conversation, last = self._places[role][self._schedules[role].take(index, 1)[0]]
        turn = conversation.turns[last]
        if role == "recognizer":
            example = self.reading(conversation.turns[: last + 1], turn.labels, "sft view", slot)
        else:
            example = self.reply(conversation.turns[:last], turn.speaker, turn.labels, turn.text)
        length = len(example.prompt_ids) + len(example.completion_ids)
        if length > self._max_length:
            raise UserError(
                f"dialogue {conversation.key}, turn {last + 1}: as an SFT example ({role}) it takes "
                f"{length} tokens, model.max_length={self._max_length} holds fewer: lower "
                "corpus.history_turns or corpus.max_turn_tokens, or raise model.max_length"
            )
        return example

    def reading(
        self, turns: Sequence[Turn], labels: Sequence[str], purpose: str, *coordinates: int
    ) -> SftExample:
        """Make an example that answers `labels` for the last turn.

        The view, and its draws, derive from purpose and coordinates.
        """
        view = derive_rng(self._run_seed, purpose, *coordinates).choice(self._views)
        seed = derive_seed(self._run_seed, purpose, *coordinates, view)
        prompt = self._prompts.recognize(turns, view_named(view), seed)
        return SftExample("recognizer", prompt, self._prompts.answer_ids(labels[:MAX_LABELS]))

    def reply(self, turns: Sequence[Turn], speaker: str, labels: Sequence[str], text: str) -> SftExample:
        """Make an example in which `speaker` answers the last turn with `text`, showing `labels`."""
        prompt = self._prompts.respond(turns, speaker, labels[:MAX_LABELS])
        return SftExample("responder", prompt, self._prompts.utterance_ids(text))

    def _teachable(self, conversation: Conversation, index: int) -> bool:
        spoken = words(conversation.turns[index].text)
        within = self._config.min_utterance_words <= len(spoken) <= self._config.max_utterance_words
        return within and not leaks_label(spoken, self._prompts.labels)
