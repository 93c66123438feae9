"""Compare the learner's logprobs with transformers' log-softmax over the real vocabulary, in every
layout and packing.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfemo.config.schema import ParallelConfig
from tests.helpers.parity import MAX_LENGTH, Options, learner, samples
from tests.helpers.tiny_model import VOCAB_SIZE, save_tiny

TOLERANCE = 1e-5
TEMPERATURE = 0.7
LAYOUTS = {
    "TP1": (1, ParallelConfig()),
    "TP2": (2, ParallelConfig(tensor=2)),
    "TP2 +SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "PP2": (2, ParallelConfig(pipeline=2)),
    "PP2 VPP2": (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def hf_dir(request, tmp_path_factory):
    """Write a model whose vocabulary is a prime: with TP2 the softmax must leave out one row of padding."""
    return str(save_tiny(tmp_path_factory.mktemp("logprobs") / "model", "qwen3", request.param, layers=4))


def _logprobs(hf_dir: str, parallel: ParallelConfig, max_tokens: int) -> dict[int, torch.Tensor]:
    """Return logprobs of each sample's completion by its index.

    Empty on ranks that do not hold the last stage.
    """
    with learner(hf_dir, parallel, Options(max_tokens=max_tokens, temperature=TEMPERATURE)) as model:
        plan = model.plan(samples(model.architecture.vocab_size))
        found = {}
        for batch, logprob_N in zip(plan, model.logprobs(plan)):
            lengths = batch.completion_bounds.diff().tolist()
            found.update(zip(batch.sample_indices, logprob_N.split(lengths) if lengths else ()))
        return found


@torch.no_grad()
def _by_transformers(hf_dir: str) -> list[torch.Tensor]:
    """Compute the same by transformers, each sample alone."""
    model, wanted = AutoModelForCausalLM.from_pretrained(hf_dir), []
    for sample in samples(VOCAB_SIZE):
        logits_TV = model(torch.tensor([sample.prompt_ids + sample.completion_ids])).logits[0]
        predicting = logits_TV[len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
        wanted.append(
            predicting.log_softmax(-1).gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
        )
    return wanted


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("TP2", "PP2") else ()) for name in LAYOUTS]
)
def test_logprobs_equal_transformers(distributed, hf_dir, name):
    processes, parallel = LAYOUTS[name]
    wanted = _by_transformers(hf_dir)
    by_rank = distributed(processes, _logprobs, hf_dir, parallel, MAX_LENGTH, timeout_s=240)
    assert any(by_rank)
    for found in filter(None, by_rank):
        assert sorted(found) == list(range(len(wanted)))
        for index, logprob_N in found.items():
            torch.testing.assert_close(logprob_N, wanted[index], rtol=0, atol=TOLERANCE)


def test_one_packed_batch_equals_many(distributed, hf_dir):
    """Compare all samples in one row with small rows: neighbours in a packed sequence must be invisible."""
    whole, small = (
        distributed(1, _logprobs, hf_dir, ParallelConfig(), tokens, timeout_s=240)[0]
        for tokens in (4096, MAX_LENGTH)
    )
    for index, logprob_N in whole.items():
        torch.testing.assert_close(logprob_N, small[index], rtol=0, atol=2e-6)
