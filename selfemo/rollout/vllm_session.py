"""Adds requests to vLLM's engine while others generate, and steps it until one ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfemo.rollout.api import Completion, GenerationRequest


class VllmSession:
    """Requests in progress on a vLLM engine; implements rollout.api.Session.

    The scheduler is deterministic: ranks of one engine that make the same calls get the same answers. The
    rest of the batch changes when a request ends, and nothing else of it.
    """

    def __init__(self, llm: Any, stop_ids: Sequence[int]) -> None:
        """Take a `vllm.LLM` with no request in progress, and the tokens that end a turn."""
        self._llm, self._stop_ids = llm, list(stop_ids)
        self._in_progress: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        """By the id in vLLM's outputs: a request's number, its id inside the engine, and its scored ids."""
        self._added = 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Add requests; they start at the engine's next step that has room."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # No penalties, logit bias or bad words: on a GPU vLLM keeps their tables beside the weights, so sleep
        # discards them and they wake up with other content (v1/worker/gpu/sample/penalties.py).
        params = [
            SamplingParams(
                temperature=r.temperature,
                seed=r.seed if r.temperature > 0 else None,
                max_tokens=r.max_tokens,
                stop_token_ids=self._stop_ids,
                # only the caller's stop ids count, not those that a generation_config.json adds
                ignore_eos=True,
                # of the sampled token; with ids, vLLM counts these instead and adds the sampled token's
                logprobs=None if r.scored_ids else 0,
                logprob_token_ids=list(r.scored_ids) or None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for r in requests
        ]
        prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests]
        # vllm-private: inside the engine, a random suffix is added to the id that outputs have.
        inside_ids = self._llm.enqueue(prompts, params, use_tqdm=False)
        for inside, request in zip(inside_ids, requests, strict=True):
            self._in_progress[inside.partition("-")[0]] = (self._added, inside, request.scored_ids)
            self._added += 1

    def advance(self) -> list[tuple[int, Completion]]:
        """Step the engine until a request ends."""
        while self._in_progress:
            ended = [output for output in self._llm.llm_engine.step() if output.finished]
            if ended:
                asked = [self._in_progress.pop(output.request_id) for output in ended]
                found = [
                    (number, _completion(output.outputs[0], scored_ids))
                    for output, (number, _, scored_ids) in zip(ended, asked, strict=True)
                ]
                return sorted(found, key=lambda pair: pair[0])
        return []

    def drop(self) -> None:
        """Take requests that have not ended out of the engine."""
        if self._in_progress:
            self._llm.llm_engine.abort_request(
                [inside for _, inside, _ in self._in_progress.values()], internal=True
            )
            self._in_progress.clear()


def _completion(output: Any, scored_ids: Sequence[int]) -> Completion:
    ids = tuple(output.token_ids)
    return Completion(
        token_ids=ids,
        logprobs=tuple(step[token].logprob for step, token in zip(output.logprobs, ids)),
        finished=output.finish_reason == "stop",
        scored_logprobs=tuple(output.logprobs[0][token].logprob for token in scored_ids),
    )
