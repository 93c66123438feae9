"""Compare the colocated engine with transformers: same weights, same tokens, same logprobs; no
tokens without weights.

There is one engine per rank of the shared two-process group, kept between tests.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selfemo.config.schema import ModelConfig, RolloutConfig
from selfemo.process.engine_ranks import EngineRanks
from selfemo.rollout.api import MAX_SCORED_IDS, GenerationRequest
from selfemo.rollout.vllm_engine import RolloutEngine
from selfemo.rollout.vllm_environment import ENVIRONMENT
from selfemo.tokens.init_model import init_model

MAX_LENGTH = 256
STOP_ID = 7
SENTENCE_TRANSFORMER = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
STATE: dict[str, Any] = {}
"""Of the worker processes: the engine and a transformers model of the same shape."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = ModelConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
    )
    texts = ["the quick brown fox jumps over the lazy dog", "some more words for a small vocabulary"] * 4
    directory = init_model(tmp_path_factory.mktemp("engine") / "model", shape, texts, seed=5)
    # files of other programs, of which vLLM by itself makes an engine that embeds, or another model
    (directory / "modules.json").write_text(json.dumps(SENTENCE_TRANSFORMER))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    (directory / "params.json").write_text('{"dim": 32, "n_layers": 1}')
    save_file({}, directory / "consolidated.safetensors")
    return str(directory)


def _engine(model_dir: str) -> RolloutEngine:
    if "engine" not in STATE:
        from transformers import AutoModelForCausalLM

        from selfemo.megatron.device import select_device

        select_device()  # as in a run: Megatron's CPU backend and vLLM share the process
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, of a user
        STATE["engine"] = RolloutEngine(
            model_dir, RolloutConfig(kv_cache_bytes=32 << 20), MAX_LENGTH, (STOP_ID,), "cpu"
        )
        STATE["model"] = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return STATE["engine"]


def _weights(seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Draw random weights, so large that greedy choices are far apart.

    Also load them into the transformers model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in STATE["model"].named_parameters():
            scale = 0.1 if "norm" in name else 0.25
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * scale + (1.0 if "norm" in name else 0.0)
            )
            yield name, parameter.detach().clone()
            if name == "model.embed_tokens.weight":
                yield "lm_head.weight", parameter.detach().clone()


def _prompt(index: int, length: int = 20) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(index)
    return tuple(torch.randint(8, 200, (length,), generator=generator).tolist())


def _logits(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return STATE["model"](torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]


def _refusals(model_dir: str) -> list[str]:
    engine = _engine(model_dir)
    messages = []

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from itertools.islice(_weights(0), 2)
        raise OSError("stream cut")

    with pytest.raises(RuntimeError) as before:
        engine.generate([GenerationRequest(_prompt(0), 1, 4, 1.0)])
    messages.append(str(before.value))
    engine.receive_checkpoint_tensors(_weights(0), version=3)
    with pytest.raises(OSError, match="stream cut"):
        engine.receive_checkpoint_tensors(broken(), version=4)
    with pytest.raises(RuntimeError) as after:
        engine.generate([GenerationRequest(_prompt(0), 1, 4, 1.0)])
    return [*messages, str(after.value)]


def _cache_bytes(model_dir: str) -> int:
    return int(_engine(model_dir)._llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes)


def test_the_cache_has_the_size_of_the_settings_whatever_a_users_variable_says(distributed, model_dir):
    assert distributed(2, _cache_bytes, model_dir, timeout_s=240) == [32 << 20] * 2


def test_an_engine_without_whole_weights_refuses_to_generate(distributed, model_dir):
    for messages in distributed(2, _refusals, model_dir, timeout_s=240):
        assert all("has received no weights" in message for message in messages)


def _greedy_after_two_syncs(model_dir: str) -> tuple[float, int]:
    """Find by how much the logit of a greedily chosen token falls below transformers' best.

    The largest over two sets of weights and the same prompts.
    """
    engine, worst, tokens = _engine(model_dir), 0.0, 0
    for version in (1, 2):
        engine.receive_checkpoint_tensors(_weights(version), version)
        prompts = [_prompt(i) for i in range(6)]
        for prompt, completion in zip(
            prompts, engine.generate([GenerationRequest(p, 0, 12, 0.0) for p in prompts])
        ):
            logits = _logits(prompt, completion.token_ids)
            chosen = logits.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            worst, tokens = (
                max(worst, float((logits.amax(-1) - chosen).max())),
                tokens + len(completion.token_ids),
            )
    return worst, tokens


def test_greedy_equals_transformers_and_new_weights_leave_nothing_behind(distributed, model_dir):
    for worst, tokens in distributed(2, _greedy_after_two_syncs, model_dir, timeout_s=240):
        assert tokens > 60
        assert worst < 1e-4  # a stale prefix cache or weight would be off by whole logits


def _sampling(model_dir: str) -> dict[str, Any]:
    engine = _engine(model_dir)
    engine.receive_checkpoint_tensors(_weights(1), 1)
    # More prompt tokens than one scheduler step takes: a seeded prefill must not be split.
    requests = [GenerationRequest(_prompt(i % 9, 180), 100 + i, 16, 0.7) for i in range(130)]
    batch = engine.generate(requests)
    alone = engine.generate(requests[50:51])
    gaps = []
    for request, completion in list(zip(requests, batch))[:20]:
        logprobs = (_logits(request.prompt_ids, completion.token_ids) / request.temperature).log_softmax(-1)
        own = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        gaps.append(float((own - torch.tensor(completion.logprobs)).abs().max()))
    return {
        "reproduced": alone[0] == batch[50],
        "distinct": len({c.token_ids for c in batch[::9]}),
        "gap": max(gaps),
        "stopped": [c.token_ids for c in batch if c.finished],
        "cut": [len(c.token_ids) for c in batch if not c.finished],
    }


def test_a_sample_depends_on_prompt_seed_and_weights_alone_and_carries_its_logprobs(distributed, model_dir):
    for figures in distributed(2, _sampling, model_dir, timeout_s=300):
        assert figures["reproduced"]
        assert figures["distinct"] >= 10
        assert figures["gap"] < 1e-4
        assert all(ids[-1] == STOP_ID and STOP_ID not in ids[:-1] for ids in figures["stopped"])
        assert set(figures["cut"]) == {16}


def _scored(model_dir: str) -> tuple[float, bool]:
    """Ask for the first token's probabilities of some greedy requests, among others that ask for none.

    Returns:
        The largest difference from transformers, and whether all completions are those without that.
    """
    engine = _engine(model_dir)
    engine.receive_checkpoint_tensors(_weights(1), 1)
    ids = tuple(range(8, 8 + 40))  # more than vLLM's limit for the likeliest tokens, 20
    requests = [
        GenerationRequest(_prompt(i), i, 4, 0.0, ids[: 20 * (i % 3)])
        if i % 2
        else GenerationRequest(_prompt(i), i, 4, 1.0)
        for i in range(12)
    ]
    found, worst = engine.generate(requests), 0.0
    for request, completion in zip(requests, found, strict=True):
        assert len(completion.scored_logprobs) == len(request.scored_ids)
        if request.scored_ids:
            first = _logits(request.prompt_ids, completion.token_ids)[0].log_softmax(-1)
            own = torch.tensor(completion.scored_logprobs)
            worst = max(worst, float((first[list(request.scored_ids)] - own).abs().max()))
    plain = engine.generate([replace(request, scored_ids=()) for request in requests])
    return worst, plain == [replace(completion, scored_logprobs=()) for completion in found]


def test_probabilities_of_the_first_token_are_transformers_own_and_change_no_completion(
    distributed, model_dir
):
    for worst, same in distributed(2, _scored, model_dir, timeout_s=240):
        assert worst < 1e-4
        assert same


def _in_shares(model_dir: str) -> bool:
    """Tell whether engines that share out requests answer as the first one answers all of them."""
    engine, engines = _engine(model_dir), EngineRanks.join(1)
    engine.receive_checkpoint_tensors(_weights(1), 1)
    requests = [GenerationRequest(_prompt(i), i, 5, 1.0) for i in range(7)]  # does not divide by two
    return engine.generate(engines.of_engine(requests)) == engines.of_engine(engine.generate(requests))


def test_engines_that_share_out_requests_answer_like_one_engine(distributed, model_dir):
    assert all(distributed(2, _in_shares, model_dir, timeout_s=240))


def test_on_a_gpu_vllm_starts_beside_the_trainer(monkeypatch):
    """Run vLLM's own check of free memory on a simulated H100 of which Megatron holds the larger
    part.

    vLLM's default would require 92%.
    """
    from vllm.config import CacheConfig
    from vllm.v1.worker.utils import request_memory

    for name, value in ENVIRONMENT.items():  # the engine sets them; they are restored after the test
        monkeypatch.setenv(name, value)
    given: dict[str, Any] = {}
    stand_in = ModuleType("vllm")
    stand_in.LLM = given.update  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    RolloutEngine("model", RolloutConfig(kv_cache_bytes=12 << 30), MAX_LENGTH, (STOP_ID,), "cuda")
    names = ("gpu_memory_utilization", "kv_cache_memory_bytes")
    gpu = SimpleNamespace(total_memory=80 << 30, free_memory=30 << 30, device_="cuda:0")
    assert request_memory(gpu, CacheConfig(**{name: given[name] for name in names})) < gpu.free_memory
    with pytest.raises(ValueError, match="less than desired GPU memory utilization"):
        request_memory(gpu, CacheConfig(kv_cache_memory_bytes=given["kv_cache_memory_bytes"]))


def test_the_tokens_that_a_request_may_score_are_the_installed_vllms() -> None:
    from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS

    assert MAX_SCORED_IDS == MAX_LOGPROB_TOKEN_IDS


def test_the_head_sizes_that_a_dry_run_takes_on_a_cpu_are_the_installed_vllms() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from selfemo.config.engine_checks import CPU_HEAD_SIZES

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()
