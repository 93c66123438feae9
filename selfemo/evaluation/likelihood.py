"""Computes label likelihoods: the probability of each label as the model's whole answer, over all its tokens.

The probability counts the token that ends the turn, so it is that of answering this label and nothing
more; labels whose tokens begin alike stay apart, and the probabilities of a closed set sum to at most
one (the rest are answers of several labels, or outside the grammar). transformers runs the model,
because an engine offers logprobs of its own samples only; selfemo.kernels computes the logprobs from
hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import batched
from typing import Any

import torch

from selfemo.common.errors import UserError
from selfemo.inference.finished_model import FinishedModel
from selfemo.kernels import token_logprobs
from selfemo.process.quiet import quiet_libraries

PROMPTS_PER_BATCH = 16
CACHE_BYTES = 1 << 31
"""Most bytes of keys and values that exist at once: a batch's prompts are repeated for every answer, beside
an engine that may be resident. One prompt with one answer may take more."""


def rows_at_once(row_bytes: float) -> int:
    """Return how many sequences of `row_bytes` of keys and values fit into CACHE_BYTES; at least one."""
    return max(1, int(CACHE_BYTES // row_bytes))


class AnswerScorer:
    """A finished model that scores given answers."""

    def __init__(self, model: FinishedModel) -> None:
        """Load the model; UserError if its files do not load."""
        with quiet_libraries():
            from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, model.config.rollout.dtype)
        try:
            with quiet_libraries():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    str(model.path),
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                )
        except OSError as error:
            raise UserError(
                f"{model.path}: its weights do not load ({str(error).splitlines()[0]}): copy the "
                "directory again"
            ) from None
        self._model = loaded.eval().to(device)
        self._device = device
        self._vocab_size = model.architecture.vocab_size
        self._token_bytes = model.architecture.kv_bytes_per_token(model.config.rollout.dtype, 1)

    def score(
        self, prompts: Sequence[tuple[int, ...]], answers: Mapping[str, tuple[int, ...]]
    ) -> list[dict[str, float]]:
        """Return, per prompt, the logprob of each answer in nats, summed over its tokens.

        Args:
            prompts: token ids, each not empty.
            answers: token ids by label, each not empty; the token that ends the turn is one of them.
        """
        found: list[dict[str, float]] = [{} for _ in prompts]
        # prompts of one length need no padding, so nothing has to be masked
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(index)
        longest = max(len(ids) for ids in answers.values())
        for length, members in by_length.items():
            at_once = rows_at_once((length + longest) * self._token_bytes)
            for part in batched(answers.items(), at_once):
                for batch in batched(members, min(PROMPTS_PER_BATCH, max(1, at_once // len(part)))):
                    rows = self._score_batch([prompts[i] for i in batch], dict(part))
                    for index, row in zip(batch, rows, strict=True):
                        found[index] |= row
        return found

    @torch.no_grad()
    def _score_batch(
        self, prompts: Sequence[tuple[int, ...]], answers: Mapping[str, tuple[int, ...]]
    ) -> list[dict[str, float]]:
        """Score B prompts of one length: read them once, then continue the cached prompt with L answers
        at a time.
        """
        count, longest = len(answers), max(len(ids) for ids in answers.values())
        padded_LA = torch.zeros((count, longest), dtype=torch.long, device=self._device)
        mask_LA = torch.zeros((count, longest), dtype=torch.bool, device=self._device)
        for row, ids in enumerate(answers.values()):
            padded_LA[row, : len(ids)] = torch.tensor(ids)
            mask_LA[row, : len(ids)] = True
        prompt_BP = torch.tensor(prompts, device=self._device)
        read = self._model.base_model(prompt_BP, use_cache=True)
        # N = B * L; predicts each answer's first token
        hidden_NAH = read.last_hidden_state[:, -1:].repeat_interleave(count, dim=0)
        answer_NA = padded_LA.repeat(len(prompts), 1)
        if longest > 1:
            read.past_key_values.batch_repeat_interleave(count)
            # Padding stands after the answer, where a causal model's earlier rows cannot see it.
            rest = self._model.base_model(
                answer_NA[:, :-1], past_key_values=read.past_key_values, use_cache=True
            )
            hidden_NAH = torch.cat([hidden_NAH, rest.last_hidden_state], dim=1)
        logprob_T = token_logprobs(
            hidden_TH=hidden_NAH.flatten(0, 1).contiguous(),
            weight_VH=self._model.get_output_embeddings().weight,
            targets_T=answer_NA.flatten(),
            mask_T=mask_LA.repeat(len(prompts), 1).flatten(),
            vocab_size=self._vocab_size,
        ).logprob_T
        total_BL = logprob_T.view(len(prompts), count, longest).sum(-1)
        return [dict(zip(answers, row, strict=True)) for row in total_BL.tolist()]
