"""Lists the turns that are evaluated, each with the context that a model may see: never a later turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Conversation, Turn


@dataclass(frozen=True)
class EvaluationTurn:
    """One annotated turn of a held-out split."""

    dialogue: str
    """Conversation key. Intervals resample whole dialogues."""
    index: int
    """Place of the turn in its dialogue."""
    context: tuple[Turn, ...] = field(repr=False)
    """The dialogue up to and including the turn."""
    next_turn: Turn | None = field(repr=False, default=None)
    """The following turn: the target of an expression evaluation. No model sees it."""

    @property
    def gold(self) -> tuple[str, ...]:
        """Gold labels, primary first."""
        return self.context[-1].labels


def evaluation_turns(conversations: Sequence[Conversation], limit: int = 0) -> tuple[EvaluationTurn, ...]:
    """List every annotated turn in file order; the first `limit` of them if it is positive.

    Raises:
        UserError: the split holds no annotated turn.
    """
    found = []
    for conversation in conversations:
        for index, turn in enumerate(conversation.turns):
            if turn.labels:
                following = conversation.turns[index + 1] if index + 1 < len(conversation.turns) else None
                found.append(
                    EvaluationTurn(conversation.key, index, conversation.turns[: index + 1], following)
                )
                if len(found) == limit:
                    return tuple(found)
    if not found:
        raise UserError(
            "evaluation: the split holds no annotated turn; check evaluation.split and the "
            "corpus's label column"
        )
    return tuple(found)
