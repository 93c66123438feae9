"""Lists the texts that the tokenizer of an initialised model is trained on."""

from __future__ import annotations

from collections.abc import Iterator

from selfemo.corpora.conversation import Corpus
from selfemo.selfplay.prompts import recognizer_text, responder_text


def tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    """Return the texts to train a tokenizer on.

    They are the prompts of both roles, and the answers and utterances of the training split.
    """
    for conversation in corpus.split("train"):
        for index, turn in enumerate(conversation.turns):
            yield turn.text
            if turn.labels:
                yield recognizer_text(conversation.turns[max(0, index - 1) : index + 1], corpus.labels)
                yield responder_text(
                    conversation.turns[max(0, index - 1) : index + 1], turn.speaker, turn.labels
                )
