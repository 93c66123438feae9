"""Weights from the learner into the engines, and the proof that they arrived.

A sync streams full Hugging Face tensors bucket by bucket into every engine. At the configured cadence the same stream also
fills a transformers model on rank 0, and every engine's greedy continuation of a few probe prompts must equal the one
transformers computes: a wrong name, shape, order, dtype or a stale cache cannot pass. A mismatch stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from selfemo.config import SyncConfig
from selfemo.megatron.learner import Learner
from selfemo.rollout.engine import RolloutEngine
from selfemo.rollout.request import GenerationRequest
from selfemo.weights.parameters import LM_HEAD

TIE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""A probe token other than transformers' best passes only within this logit distance of it: rounding may break an exact tie."""


class SyncError(RuntimeError):
    """An engine does not compute what the trainer's weights say."""


@dataclass(frozen=True)
class SyncReport:
    """One sync."""

    version: int
    seconds: float
    """Transfer alone, without the probe."""
    weight_bytes: int
    """Bytes of full tensors handed to each engine."""
    verified: bool
    """The greedy probe ran (and passed: a failure raises)."""


class WeightSync:
    """Sends the learner's weights to this rank's engine and verifies them."""

    def __init__(self, learner: Learner, engine: RolloutEngine, model_dir: str, config: SyncConfig, dtype: str) -> None:
        self._learner, self._engine, self._config = learner, engine, config
        self._probe = GreedyProbe(model_dir, config.probe_tokens, dtype) if dist.get_rank() == 0 else None
        self._dtype = dtype
        self._count = 0
        self.prompts: tuple[tuple[int, ...], ...] = ()
        """Probe prompts; set before the first sync."""

    def sync(self, version: int) -> SyncReport:
        """Send the current weights to every engine. Collective.

        Raises:
            SyncError: an engine's greedy continuation differs from transformers' under the same weights.
        """
        verify = bool(self.prompts) and (
            self._count == 0 or (self._config.verify_every > 0 and self._count % self._config.verify_every == 0)
        )
        self._count += 1
        self._engine.wake_up()
        started = time.perf_counter()
        weight_bytes = 0

        def stream() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal weight_bytes
            for name, tensor in self._learner.hf_tensors(self._config.bucket_bytes, include_tied_head=True):
                weight_bytes += tensor.numel() * tensor.element_size()
                if verify and self._probe:
                    self._probe.load(name, tensor)
                yield name, tensor

        self._engine.receive_checkpoint_tensors(stream(), version)
        self._learner.device.synchronize()
        seconds = time.perf_counter() - started
        if verify:
            self._verify(version)
        return SyncReport(version, seconds, weight_bytes, verify)

    def _verify(self, version: int) -> None:
        requests = [GenerationRequest(prompt, 0, self._config.probe_tokens, 0.0) for prompt in self.prompts]
        mine = [completion.token_ids for completion in self._engine.generate(requests)]
        continuations: list[list[tuple[int, ...]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(continuations, mine)
        problem = [""]
        if self._probe:
            problem[0] = self._probe.compare(self.prompts, continuations, TIE_TOLERANCE[self._dtype])
        dist.broadcast_object_list(problem, src=0)
        if problem[0]:
            raise SyncError(f"weight sync {version}: {problem[0]}; the engines hold other weights than the trainer, stopping")


class GreedyProbe:
    """A transformers model on rank 0 that receives the same weights and continues the same prompts."""

    def __init__(self, model_dir: str, probe_tokens: int, dtype: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir), dtype=getattr(torch, dtype)).eval()
        self._parameters = dict(self._model.named_parameters())
        self._probe_tokens = probe_tokens

    @torch.no_grad()
    def load(self, name: str, tensor: torch.Tensor) -> None:
        """Copy one tensor; a tied model has no lm_head.weight of its own."""
        if name == LM_HEAD and name not in self._parameters:
            return
        self._parameters[name].copy_(tensor)

    @torch.no_grad()
    def compare(self, prompts: Sequence[tuple[int, ...]], continuations: Sequence[Sequence[tuple[int, ...]]], tolerance: float) -> str:
        """Compare every rank's continuations with transformers, token by token; returns the first difference, or ""."""
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
                        f"probe {index} on rank {rank}: token {worst} of the greedy continuation is {answer[worst]}, "
                        f"transformers takes {int(logits[worst].argmax())} ({float(shortfall[worst]):.2g} logits better)"
                    )
        return ""
