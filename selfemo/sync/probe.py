"""Compare an engine's greedy continuations of a few prompts with transformers', as the end-to-end
proof of a weight sync.

A wrong name, shape, order or dtype changes the next token somewhere. So does a stale cache, which
checksums of tensors cannot detect.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfemo.models.parameters import LM_HEAD

TIE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""Logit distance from transformers' best token within which another probe token still passes, at the least:
rounding may break a tie.
"""

TIE_UNITS = 2
"""The same in units in the last place of the row's largest logit. Engine and transformers round their logits
and the hidden states behind them each in its own order, so that two tokens whose logits are a unit apart may
change places; a bf16 logit of 16 to 32 has units of 0.125, one of 32 to 64 of 0.25.
"""


def tie_tolerance(logits: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return [N], the distance from the best of `logits` [N, V] within which another token passes."""
    largest = logits.abs().amax(-1)
    _, exponent = torch.frexp(largest)  # largest = mantissa * 2**exponent, mantissa in [0.5, 1)
    unit = torch.ldexp(torch.full_like(largest, torch.finfo(getattr(torch, dtype)).eps), exponent - 1)
    return (TIE_UNITS * unit).clamp_min(TIE_TOLERANCE[dtype])


class GreedyProbe:
    """A transformers model on rank 0 that receives the same weights and continues the same prompts."""

    def __init__(self, model_dir: str, probe_tokens: int, dtype: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(model_dir), dtype=getattr(torch, dtype)
        ).eval()
        self._parameters = dict(self._model.named_parameters())
        self._probe_tokens = probe_tokens

    @torch.no_grad()
    def load(self, name: str, tensor: torch.Tensor) -> None:
        """Copy one tensor; a tied model has no lm_head.weight of its own."""
        if name == LM_HEAD and name not in self._parameters:
            return
        self._parameters[name].copy_(tensor)

    @torch.no_grad()
    def compare(
        self,
        prompts: Sequence[tuple[int, ...]],
        continuations: Sequence[Sequence[tuple[int, ...]]],
        dtype: str,
    ) -> str:
        """Compare every rank's continuations with transformers, token by token.

        Args:
            continuations: token ids, by rank and then by prompt.
            dtype: the engine's, in which it computes logits.

        Returns:
            The first difference in words, or "".
        """
        for index, prompt in enumerate(prompts):
            checked: set[tuple[int, ...]] = set()
            for rank, answers in enumerate(continuations):
                answer = answers[index]
                if answer in checked:
                    continue
                checked.add(answer)
                logits = self._model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
                shortfall = logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
                excess = shortfall - tie_tolerance(logits, dtype)
                worst = int(excess.argmax())
                if excess[worst] > 0:
                    return (
                        f"probe {index} on rank {rank}: token {worst} of the greedy continuation is "
                        f"{answer[worst]}, transformers takes {int(logits[worst].argmax())} "
                        f"({float(shortfall[worst]):.2g} logits better)"
                    )
        return ""
