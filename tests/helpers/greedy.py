"""Compares an engine's greedy continuations with transformers in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

Tokens = Sequence[tuple[int, ...]]


@cache
def _reference(hf_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()


@torch.no_grad()
def _next_logits(hf_dir: Path, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """Compute transformers' logits [N, V] at every place of an answer."""
    return _reference(hf_dir)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]


def greedy_choices(hf_dir: Path, prompts: Tokens, continuations: Tokens) -> list[tuple[int, ...]]:
    """Take transformers' choice at every place of the continuations: equal to them if they are its own."""
    return [
        tuple(_next_logits(hf_dir, prompt, answer).argmax(-1).tolist())
        for prompt, answer in zip(prompts, continuations, strict=True)
    ]


def worst_shortfall(hf_dir: Path, prompts: Tokens, continuations: Tokens) -> float:
    """Find by how many logits the worst token is below transformers' best."""
    worst = 0.0
    for prompt, answer in zip(prompts, continuations, strict=True):
        logits = _next_logits(hf_dir, prompt, answer)
        worst = max(
            worst, float((logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]).max())
        )
    return worst
