"""Compares a self-play rollout with plain vLLM."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench_iteration.setting import bench_config, build_trainer, ratio_figures

if TYPE_CHECKING:
    from selfemo.rollout.api import Completion, GenerationRequest, Generator
    from selfemo.trainer import Trainer

    Call = list[tuple[GenerationRequest, int]]
    """Requests of one generator call, and the tokens each was answered with."""

ROLLOUT_BAR = 0.9
"""Least throughput of a self-play rollout, as a share of plain generation's."""
SAME_REQUESTS_BAR = 0.97
"""The same, if the plain requests have the seeds and logprobs too, which are vLLM's work in both."""


def bench_rollout(options: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """Compare a self-play rollout of both roles with plain generation of the very prompts and lengths
    it asked for.

    The rollout is selfplay.play: prompts, engine calls, parsing, gates, votes. LLM.generate answers the
    same requests phase by phase; again with the seeds and logprobs that self-play needs; and all in one
    call.
    """
    trainer = build_trainer(bench_config(options, run_dir, turns=options.turns))
    listener = _Listener(trainer.system.engine)
    seconds: dict[str, list[float]] = {
        "self-play": [],
        "plain": [],
        "plain, seeded": [],
        "plain, one call": [],
    }
    tokens = requests = 0
    for round_number in range(options.warmup + options.rounds):
        openings = trainer.parts.opening_pool.draw(round_number)
        listener.calls.clear()
        replace(trainer.parts.selfplay, generator=listener).play(openings, round_number)
        calls = [list(call) for call in listener.calls]
        sides: list[tuple[str, Callable[[], Any]]] = [
            ("self-play", partial(trainer.parts.selfplay.play, openings, round_number)),
            ("plain", partial(_plain, trainer, calls)),
            ("plain, seeded", partial(_plain, trainer, calls, seeded=True)),
            ("plain, one call", partial(_plain, trainer, [[item for call in calls for item in call]])),
        ]
        shift = round_number % len(sides)
        for name, side in sides[shift:] + sides[:shift]:
            _llm(trainer).reset_prefix_cache()
            started = time.perf_counter()
            side()
            if round_number >= options.warmup:
                seconds[name].append(time.perf_counter() - started)
        if round_number >= options.warmup:
            requests += sum(len(call) for call in calls)
            tokens += sum(length for call in calls for _, length in call)
    return {
        "seeds": options.prompts,
        "views": options.views,
        "turns": options.turns,
        "rounds": options.rounds,
        "requests_per_round": requests / options.rounds,
        "tokens_per_round": tokens / options.rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        **ratio_figures(seconds["plain"], seconds["self-play"], ROLLOUT_BAR),
        "same_requests": ratio_figures(seconds["plain, seeded"], seconds["self-play"], SAME_REQUESTS_BAR),
    }


class _Listener:
    """A generator that records its requests and the lengths of the answers."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.calls: list[Call] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        completions = self._generator.generate(requests)
        self.calls.append(list(zip(requests, (len(c.token_ids) for c in completions), strict=True)))
        return completions


def _plain(trainer: Trainer, calls: Sequence[Call], seeded: bool = False) -> None:
    """Let vLLM alone turn token ids into as many ids as self-play got.

    `seeded` adds the seeds and logprobs that self-play needs.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for call in calls:
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request, _ in call]
        params = [
            SamplingParams(
                temperature=request.temperature,
                max_tokens=length,
                min_tokens=length,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                seed=request.seed if seeded and request.temperature > 0 else None,
                logprobs=0 if seeded else None,
            )
            for request, length in call
        ]
        _llm(trainer).generate(prompts, params, use_tqdm=False)


def _llm(trainer: Trainer) -> Any:
    engine: Any = trainer.system.engine
    return engine._llm
