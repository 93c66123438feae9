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
"""Logit distance from transformers' best token within which another probe token still passes:
rounding may break an exact tie.
"""


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
        tolerance: float,
    ) -> str:
        """Compare every rank's continuations with transformers, token by token.

        Args:
            continuations: token ids, by rank and then by prompt.
            tolerance: see TIE_TOLERANCE.

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
                worst = int(shortfall.argmax())
                if shortfall[worst] > tolerance:
                    return (
                        f"probe {index} on rank {rank}: token {worst} of the greedy continuation is "
                        f"{answer[worst]}, transformers takes {int(logits[worst].argmax())} "
                        f"({float(shortfall[worst]):.2g} logits better)"
                    )
        return ""
