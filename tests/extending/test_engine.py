"""Test that an engine from outside serves a finished model through the protocol alone.

Also test that the marks on private names of megatron-core are complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfemo.inference.engines import ModelGenerator, _SharedEngine
from selfemo.inference.finished_model import find_model
from selfemo.rollout.api import Completion, Engine, GenerationRequest, LiveParameter, Session
from selfemo.rollout.sessions import CallByCall
from selfemo.rollout.vllm_engine import RolloutEngine
from tests.helpers.tiny_model import save_tiny

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = re.compile(
    r"\b(parallel_state|filesystem_async|tracker)\._(?!_)"  # an underscored name of a module
    r"|\b(factory|distributed)\.[A-Z]\w+ ="  # a module's constant that is replaced
    r"|def _(pre|post)process\("  # a method of GPTModel that is overridden
    r"|chained_optimizers|\.main_grad\b|_LITERAL_MODULES = "
)
MARK = "megatron-private"


class TransformersEngine:
    """Decode greedily by transformers: an engine that shares no code with vLLM's."""

    def __init__(self, model_dir: Path, max_length: int) -> None:
        self._model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir)).float().eval()
        self.max_length, self.weight_version = max_length, -1

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if self.weight_version < 0:
            raise RuntimeError("no weights yet")
        return [self._complete(request) for request in requests]

    @contextmanager
    def session(self) -> Iterator[Session]:
        yield CallByCall(self)

    def _complete(self, request: GenerationRequest) -> Completion:
        ids, logprobs = list(request.prompt_ids), []
        with torch.no_grad():
            for _ in range(request.max_tokens):
                distribution_V = self._model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(distribution_V.argmax()))
                logprobs.append(float(distribution_V.max()))
        return Completion(tuple(ids[len(request.prompt_ids) :]), tuple(logprobs), finished=False)

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self._model.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=True)
        self.weight_version = version

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        raise NotImplementedError

    def live_parameters(self) -> list[LiveParameter]:
        return []

    def live_tensors(self) -> Mapping[str, torch.Tensor]:
        return dict(self._model.named_parameters())

    def sleep(self) -> None: ...

    def wake_up(self) -> None: ...


def test_an_engine_from_outside_answers_with_the_weights_it_was_sent(tmp_path: Path):
    directories = [save_tiny(tmp_path / str(seed), "qwen3", tied=True, seed=seed) for seed in range(2)]
    shared = _SharedEngine(TransformersEngine(directories[0], max_length=32))
    request = GenerationRequest((5, 6, 7), seed=0, max_tokens=6, temperature=0.0)
    with pytest.raises(RuntimeError, match="no weights yet"):
        shared._engine.generate([request])
    for directory in directories:
        (found,) = ModelGenerator(shared, find_model(directory)).generate([request])
        model = AutoModelForCausalLM.from_pretrained(directory).float().eval()
        expected = model.generate(
            torch.tensor([request.prompt_ids]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        assert found.token_ids == tuple(expected[0, 3:].tolist())
        assert len(found.logprobs) == 6
    assert shared._engine.weight_version == 1


def test_both_engines_have_everything_the_protocol_names():
    names = {name for name in vars(Engine) if not name.startswith("_")} | {"generate"}
    assert names >= {"generate", "sleep", "wake_up", "receive_checkpoint_tensors", "live_tensors"}
    assert names <= set(dir(RolloutEngine))
    assert names <= set(dir(TransformersEngine))


def test_one_search_finds_every_private_name_of_megatron_core():
    unmarked = []
    for room in ("megatron", "weights"):
        for path in sorted((ROOT / "selfemo" / room).glob("*.py")):
            lines = path.read_text(encoding="utf-8").split("\n")
            for number, (before, line) in enumerate(zip(["", *lines], lines), 1):
                if PRIVATE.search(line) and MARK not in before + line:
                    unmarked.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert unmarked == []
