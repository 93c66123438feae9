"""Keeps this rank's real vLLM engines, whose incoming weights can be damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from selfemo.config.schema import RolloutConfig
from selfemo.rollout.api import GenerationRequest
from selfemo.rollout.vllm_engine import RolloutEngine
from tests.helpers.parity import Dtype
from tests.helpers.plain_engine import keep_bf16_matrices_plain

VOCAB_SIZE = 509
PROMPTS = tuple(tuple((7 * i + 3 * j) % VOCAB_SIZE for j in range(20)) for i in range(4))
Tokens = list[tuple[int, ...]]


class SyncEngine(RolloutEngine):
    """A real engine that can damage one tensor on the way in."""

    damaged = ""
    """Part of the name of tensors that arrive negated."""

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        super().receive_checkpoint_tensors(self._damage(tensors), version)

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        super().copy_direct(self._damage(tensors), version)

    def _damage(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        return (
            (name, -tensor if self.damaged and self.damaged in name else tensor) for name, tensor in tensors
        )

    def greedy(self) -> Tokens:
        return [
            completion.token_ids
            for completion in self.generate([GenerationRequest(p, 0, 12, 0.0) for p in PROMPTS])
        ]


_engines: dict[tuple[int, Dtype], SyncEngine] = {}
"""This rank's engines, kept between calls: vLLM's parallel state is made once per process."""


def engine_for(hf_dir: str, tensor_parallel: int, dtype: Dtype = "bfloat16") -> SyncEngine:
    """Get this rank's engine, built at the first call; bf16 ones keep their matrices in plain layout."""
    keep_bf16_matrices_plain()
    if (tensor_parallel, dtype) not in _engines:
        config = RolloutConfig(
            tensor_parallel=tensor_parallel, dtype=dtype, kv_cache_bytes=1 << 24, max_num_seqs=8
        )
        _engines[tensor_parallel, dtype] = SyncEngine(hf_dir, config, 64, [], "cpu")
    return _engines[tensor_parallel, dtype]
