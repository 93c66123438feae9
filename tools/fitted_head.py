"""Fits an output head to the lowest layers of a model, so that they predict tokens by themselves.

A model's own head was made for its last layer and misreads any other by tens of nats. A head of zeros has to
learn 49,152 rows from a few hundred short answers first, and the states below it collapse meanwhile: on MELD
such a start read worse than a regression on the frozen states (docs/study/log.md). The fit is one linear map
from the lower layer's states to the last one's, by least squares on plain text, as the "tuned lens" of
Belrose et al. (arXiv 2303.08112) has it; the map and the model's own head make the new head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from selfemo.corpora.conversation import Conversation

RIDGE = 0.01
"""Added to the diagonal, as a share of its mean. 0.001 and 0.1 predict held-out text worse."""


def fitted_head(model: LlamaForCausalLM, layers: int, texts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Fit the head with which the lowest `layers` layers and the final norm come closest to the whole model.

    Args:
        model: the whole model, fp32.
        layers: fewer than it has.
        texts: token ids, each [tokens]; together several times as many tokens as the model is wide.

    Returns:
        [vocabulary, width] fp32.
    """
    width = model.config.hidden_size
    squares, products = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for ids in texts:
            states = model.model(ids[None], output_hidden_states=True)
            lower = model.model.norm(states.hidden_states[layers])[0].double()
            squares += lower.T @ lower
            products += lower.T @ states.last_hidden_state[0].double()
        ridge = RIDGE * squares.diagonal().mean() * torch.eye(width, dtype=torch.float64)
        lower_to_last = torch.linalg.solve(squares + ridge, products)
        return (model.lm_head.weight.double() @ lower_to_last.T).float().contiguous()


def chats(
    dialogues: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase, chat_template: str
) -> Iterable[torch.Tensor]:
    """Yield the token ids of each dialogue as a chat, in which every second turn is the model's."""
    for dialogue in dialogues:
        messages = [
            {"role": ("user", "assistant")[index % 2], "content": f"{turn.speaker}: {turn.text}"}
            for index, turn in enumerate(dialogue.turns)
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=chat_template or None)
        yield torch.tensor(tokenizer.encode(text, add_special_tokens=False))
