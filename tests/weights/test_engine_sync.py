"""Weights into live vLLM engines: every Megatron layout with engines of one rank and of two, on both paths, proven three ways.

Live parameters are compared with the trainer by checksum, the two paths with each other by their greedy continuations, and these with
transformers: no token may be worse than its best by more than bf16 rounding explains.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from selfemo.config import ParallelConfig, RolloutConfig
from selfemo.rollout.engine import RolloutEngine
from selfemo.rollout.request import GenerationRequest
from selfemo.weights.checksums import verify_transfer
from selfemo.weights.load import load_hf_weights
from selfemo.weights.parameters import hf_tensor_list
from selfemo.weights.plan import EngineLayout, TrainerLayout
from selfemo.weights.transfer import choose_transfer
from tests.distributed.harness import DistributedRunner
from tests.weights.megatron_rank import megatron_chunks, weight_groups
from tests.weights.tiny import save_tiny

VOCAB_SIZE = 509
BUCKET_BYTES = 30_000
BF16_SHORTFALL = 0.25
"""Logits that bf16 rounding may cost a greedy token against fp32 transformers."""
PROMPTS = tuple(tuple((7 * i + 3 * j) % VOCAB_SIZE for j in range(20)) for i in range(4))


class _Engine(RolloutEngine):
    def greedy(self) -> list[tuple[int, ...]]:
        return [completion.token_ids for completion in self.generate([GenerationRequest(p, 0, 12, 0.0) for p in PROMPTS])]


_engines: dict[int, _Engine] = {}
"""This rank's engine, kept between calls: vLLM's parallel state is made once per process."""


def engine_for(hf_dir: str, tensor_parallel: int) -> _Engine:
    """This rank's engine, built at the first call."""
    if tensor_parallel not in _engines:
        config = RolloutConfig(tensor_parallel=tensor_parallel, dtype="bfloat16", kv_cache_bytes=1 << 24, max_num_seqs=8)
        _engines[tensor_parallel] = _Engine(hf_dir, config, 64, [], "cpu")
    return _engines[tensor_parallel]


def _sync(hf_dir: str, parallel: ParallelConfig, engine_tensor: int, mode: str) -> tuple[int, int, int, list[tuple[int, ...]]]:
    """Tensors compared by checksum, bytes moved, least bytes possible, greedy continuations."""
    rank, world = dist.get_rank(), dist.get_world_size()
    engine = engine_for(hf_dir, engine_tensor)
    with megatron_chunks(Path(hf_dir), parallel, torch.bfloat16) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.tensor_size)
        trainer = TrainerLayout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, layout.data_size)
        engines = EngineLayout(engine_tensor, world // engine_tensor)
        transfer = choose_transfer(mode, architecture, trainer, engines, weight_groups(layout), engine, rank, BUCKET_BYTES)
        report = transfer.send(chunks, engine, version=1)
        assert report.path == ("checkpoint" if mode == "checkpoint" else "direct")
        compared = verify_transfer(chunks, engine, architecture, trainer, engines, rank)
        assert compared == len(hf_tensor_list(architecture))
        return compared, report.received_bytes, report.lower_bound_bytes, engine.greedy()


@pytest.fixture(scope="module", params=[1, 2], ids=["engine-tp1", "engine-tp2"])
def ranks(request: pytest.FixtureRequest) -> Iterator[tuple[DistributedRunner, int]]:
    """Two ranks of their own for each engine layout, so that no other test shares a process with vLLM."""
    runner = DistributedRunner()
    yield runner, request.param
    runner.close()


LAYOUTS = {"megatron-tp2": ParallelConfig(tensor=2), "megatron-pp2": ParallelConfig(pipeline=2), "megatron-dp2": ParallelConfig()}


@pytest.mark.parametrize("parallel", LAYOUTS.values(), ids=LAYOUTS)
def test_both_paths_bring_the_same_right_weights(tmp_path: Path, ranks: tuple[DistributedRunner, int], parallel: ParallelConfig) -> None:
    runner, engine_tensor = ranks
    first, second = (
        save_tiny(tmp_path / str(seed), "qwen3", True, torch.bfloat16, seed=seed, vocab_size=VOCAB_SIZE, head_dim=32) for seed in (1, 2)
    )
    by_checkpoint = runner(2, _sync, str(first), parallel, engine_tensor, "checkpoint")
    other = runner(2, _sync, str(second), parallel, engine_tensor, "direct")
    by_plan = runner(2, _sync, str(first), parallel, engine_tensor, "auto")
    assert other[0][3] != by_plan[0][3]
    for (_, gathered_bytes, _, tokens), (_, moved_bytes, least_bytes, same_tokens) in zip(by_checkpoint, by_plan):
        assert same_tokens == tokens
        assert moved_bytes == least_bytes <= gathered_bytes
        assert (moved_bytes == 0) == (parallel.pipeline == 1 and parallel.tensor in (1, engine_tensor))
    assert _worst_shortfall(first, by_plan[0][3]) <= BF16_SHORTFALL < _worst_shortfall(second, by_plan[0][3])


def _worst_shortfall(hf_dir: Path, continuations: list[tuple[int, ...]]) -> float:
    """How many logits the worst token is below transformers' best."""
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()
    worst = 0.0
    for prompt, answer in zip(PROMPTS, continuations):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        worst = max(worst, float((logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]).max()))
    return worst
