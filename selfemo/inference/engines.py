"""Runs engines for finished models in one process, without Megatron.

Evaluation, chat and replay generate with them.

The engine is the one that a run uses, so that a model is judged by the engine it was trained with. It starts
with dummy weights and is sent the directory's tensors, as a trainer sends them. Models with the same content
of config.json share an engine, whose weights are exchanged when the other model generates: a comparison of
two checkpoints takes the memory of one. vLLM's external launcher needs a process group, so the process
becomes a world of one, over an in-memory store that needs no port.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfemo.common.errors import UserError
from selfemo.common.json_file import read_json_object
from selfemo.inference.finished_model import FinishedModel
from selfemo.models.architecture import CONFIG_NAME
from selfemo.process.quiet import quiet_libraries
from selfemo.rollout.api import Completion, Engine, GenerationRequest, check_room

if TYPE_CHECKING:
    import torch

    from selfemo.config.schema import RolloutConfig

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


class StandaloneEngines:
    """The engines of this process; implements selfemo.inference.finished_model.Engines."""

    def __init__(self) -> None:
        self._engines: dict[tuple[str, RolloutConfig, int, tuple[int, ...]], _SharedEngine] = {}

    def generator(self, model: FinishedModel) -> ModelGenerator:
        """Make a generator for the weights of `model`.

        The engine starts here; weights are sent when the generator is used.

        Raises:
            UserError: the directory's weights or tokenizer are absent, damaged or unsupported; or this is one
                of torchrun's many processes.
        """
        # WORLD_SIZE alone says nothing: operators such as Kubeflow's set it in every container
        if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("this command runs in one process: start it without torchrun")
        from selfemo.tokens.encoder import ChatEncoder

        model.check_weights()
        model.check_engine()
        # One process is one rank. No sleep: weights that are gone while the engine sleeps could not be sent
        # again.
        rollout = replace(model.config.rollout, tensor_parallel=1, sleep=False)
        stop_ids = ChatEncoder(model.path).end_of_turn_ids
        # the engine reads the whole file
        content = json.dumps(read_json_object(model.path / CONFIG_NAME), sort_keys=True)
        key = (content, rollout, model.config.model.max_length, stop_ids)
        if key not in self._engines:
            self._engines[key] = _SharedEngine(
                self._start(str(model.path), rollout, model.config.model.max_length, stop_ids)
            )
        return ModelGenerator(self._engines[key], model)

    def _start(
        self, model_dir: str, rollout: RolloutConfig, max_length: int, stop_ids: tuple[int, ...]
    ) -> Engine:
        with quiet_libraries():
            import torch

            from selfemo.rollout.vllm_engine import RolloutEngine

            kind = "cuda" if torch.cuda.is_available() else "cpu"
            join_world_of_one(torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else None)
            return RolloutEngine(model_dir, rollout, max_length, stop_ids, kind)


class _SharedEngine:
    """An engine, and the model whose weights it holds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._holds: Path | None = None

    def under(self, model: FinishedModel) -> Engine:
        """Return the engine with this model's weights; they are sent if it holds another's."""
        if self._holds != model.path:
            self._holds = None
            self._engine.receive_checkpoint_tensors(directory_tensors(model), self._engine.weight_version + 1)
            self._holds = model.path
        return self._engine


class ModelGenerator:
    """Generates with one finished model; implements rollout.api.Generator."""

    def __init__(self, shared: _SharedEngine, model: FinishedModel) -> None:
        self._shared, self._model = shared, model

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate one completion per request, in order.

        Raises:
            UserError: a prompt leaves no room for its completion in the model's longest sequence.
        """
        check_room(requests, self._model.config.model.max_length, f"{self._model.path}: ")
        with quiet_libraries():
            return self._shared.under(self._model).generate(requests)


def directory_tensors(model: FinishedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a model directory in the stored dtype.

    A tied model's embedding comes once more, as lm_head.weight.
    """
    from selfemo.models.parameters import EMBEDDING, LM_HEAD, hf_tensor_list
    from selfemo.weights.hf_directory import HfDirectory

    stored = HfDirectory(model.path)
    for tensor in hf_tensor_list(model.architecture):
        yield tensor.name, stored.read(tensor.name)
    if model.architecture.tie_word_embeddings:
        yield LM_HEAD, stored.read(EMBEDDING)
    stored.close()


def join_world_of_one(gpu: torch.device | None) -> None:
    """Enter a process group of one, over NCCL on a GPU, unless this process is in a group already.

    vLLM's own shutdown destroys the group.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.update(ALONE)
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=gpu)
