"""Runs one vLLM engine inside the training process.

The engine starts with dummy weights on purpose: the only weights it can ever hold are those the trainer sent.
Before a sync has ended, and while the engine sleeps, `generate` raises, since it would produce plausible
garbage. Every request carries its own seed, so that a completion depends on the prompt, the seed and the
weights, not on the rest of the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from selfemo.common.errors import UserError
from selfemo.config.engine_checks import BATCHED_TOKENS, BLOCK_TOKENS
from selfemo.config.schema import RolloutConfig
from selfemo.rollout.api import Completion, GenerationRequest, LiveParameter
from selfemo.rollout.sessions import complete
from selfemo.rollout.vllm_environment import ENVIRONMENT, environment_put_back, settle_environment
from selfemo.rollout.vllm_session import VllmSession
from selfemo.rollout.vllm_shared_memory import named_shared_memory

MEMORY_CHECK_FRACTION = 0.01
"""Share of the GPU that vLLM demands to be free at its start. Its default, 0.92, is for an engine that has
the GPU alone: beside the trainer's model and optimizer it would end the run. With an explicit KV cache size
vLLM uses the value for nothing else."""

CPU_BLOCK_TOKENS = BLOCK_TOKENS
"""Tokens of a KV block on a CPU, the smallest that vLLM's kernels there prefer. Whole blocks are shared, and
of its default, 128, prompts of short dialogues fill none."""

# vllm-private: warns of every module that a reload leaves as it was, and frozen weights are sent once.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


class RolloutEngine:
    """A vLLM engine on this rank, or this rank's part of one that spans `rollout.tensor_parallel` ranks."""

    def __init__(
        self,
        model_dir: str,
        config: RolloutConfig,
        max_length: int,
        stop_ids: Sequence[int],
        device_kind: str,
    ) -> None:
        """Start the engine with dummy weights.

        Args:
            stop_ids: tokens that end a turn; the engine has no tokenizer to know them from.

        Raises:
            UserError: vllm cannot be imported, an environment variable of its own cannot be read, or its CPU
                attention has no kernel for the model's head_dim.
        """
        self.max_length = max_length
        """Longest sequence, prompt and completion together, in tokens."""
        with environment_put_back():
            settle_environment(ENVIRONMENT)
            self._llm: Any = _build(model_dir, config, max_length, device_kind)
        if device_kind == "cpu":
            _check_cpu_head_size(self._llm.llm_engine.model_config.get_head_size())
        self._stop_ids = list(stop_ids)
        self._can_sleep = config.sleep and device_kind == "cuda"
        self._asleep = False
        self.weight_version = -1
        """Number of the last weights received; -1 before the first."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate one completion per request, in order.

        Raises:
            RuntimeError: the engine has received no weights, or is asleep.
        """
        with self.session() as session:
            return complete(session, requests)

    @contextmanager
    def session(self) -> Iterator[VllmSession]:
        """Begin a session; on exit, requests that have not ended are dropped.

        Raises:
            RuntimeError: the engine has received no weights, or is asleep.
        """
        self._refuse_unless_ready()
        # Prompts share prefixes within a session alone. What a session returns then does not depend on
        # sessions before it, of which there are none after a resume, and no keys of older weights are left.
        self._llm.reset_prefix_cache()
        session = VllmSession(self._llm, self._stop_ids)
        try:
            yield session
        finally:
            session.drop()

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load full Hugging Face tensors (tied models: `lm_head.weight` too) through vLLM's own loader."""
        self._reload(tensors, version, is_checkpoint_format=True)

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy tensors into the engine's parameters.

        They must be in its fused, sharded layout already (see `live_parameters`).
        """
        self._reload(tensors, version, is_checkpoint_format=False)

    def live_parameters(self) -> list[LiveParameter]:
        """List the engine's own parameters on this rank.

        A matrix that a CPU backend has prepacked has an empty shape.
        """
        return [
            LiveParameter(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for name, t in self.live_tensors().items()
        ]

    def live_tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the running model's parameters on this rank by name, not copied, for checksums."""
        found: list[Mapping[str, torch.Tensor]] = self._llm.apply_model(
            lambda model: dict(model.named_parameters())
        )
        return found[0]

    def sleep(self) -> None:
        """Free weights and KV cache (GPU, vLLM level 2).

        On CPU the engine stays in memory and this does nothing.
        """
        if self._can_sleep and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def wake_up(self) -> None:
        """Allocate memory again. The weights are gone and must be received before `generate`."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
            self.weight_version = -1

    def _reload(
        self, tensors: Iterable[tuple[str, torch.Tensor]], version: int, is_checkpoint_format: bool
    ) -> None:
        if self._asleep:
            raise RuntimeError("the rollout engine is asleep and cannot receive weights: call wake_up first")
        # if the reload fails, the engine cannot be used with weights that are half old
        self.weight_version = -1
        with torch.no_grad():
            self._llm.collective_rpc(
                "reload_weights",
                kwargs={"weights_iterator": iter(tensors), "is_checkpoint_format": is_checkpoint_format},
            )
        self.weight_version = version

    def _refuse_unless_ready(self) -> None:
        if self._asleep:
            raise RuntimeError("the rollout engine is asleep: wake it up and send weights before generating")
        if self.weight_version < 0:
            raise RuntimeError("the rollout engine has received no weights: sync before generating")


def _build(model_dir: str, config: RolloutConfig, max_length: int, device_kind: str) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"vllm cannot be imported ({error}): run `make setup`, "
            "or pip install -r requirements/cpu.txt (GPU: as docs/gpu.md says)"
        ) from None
    if device_kind == "cpu":
        # vLLM compiles one function of two lines, the rank of a token, with the C++ compiler that a machine
        # may not have; nothing else of a run is compiled on a CPU.
        torch._dynamo.config.disable = True
    with named_shared_memory() if device_kind == "cpu" and config.tensor_parallel > 1 else nullcontext():
        return LLM(
            model=model_dir,
            load_format="dummy",
            # config.json as it is read here, generating: beside params.json vLLM would read that, and beside
            # modules.json (Qwen3-Embedding) make an engine that cannot generate
            config_format="hf",
            runner="generate",
            skip_tokenizer_init=True,
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel,
            distributed_executor_backend="external_launcher",
            max_model_len=max_length,
            max_num_seqs=config.max_num_seqs,
            # On CPU a seeded prefill must not be split over scheduler steps. Without chunking, the bound
            # is a guarantee. On a GPU vLLM warns of wrong results without it.
            max_num_batched_tokens=max(BATCHED_TOKENS, max_length),
            enable_chunked_prefill=device_kind == "cuda",
            kv_cache_memory_bytes=config.kv_cache_bytes,
            gpu_memory_utilization=MEMORY_CHECK_FRACTION,
            enable_prefix_caching=True,
            **({"block_size": CPU_BLOCK_TOKENS} if device_kind == "cpu" else {}),
            enforce_eager=config.enforce_eager,
            enable_sleep_mode=config.sleep and device_kind == "cuda",
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            seed=0,
        )


def _check_cpu_head_size(head_size: int) -> None:
    """Raise if vLLM's CPU attention has no kernel for a head size.

    vLLM itself fails only at the first token.
    """
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # vllm-private

    supported = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in supported:
        raise UserError(
            f"the model's head_dim is {head_size}; "
            f"vLLM on CPU takes one of {', '.join(map(str, supported))}: "
            "use such a model, or a GPU"
        )


def engine_version() -> str:
    """Return name and version of the engine package, such as "vllm 0.32.0"."""
    import vllm

    return f"vllm {vllm.__version__}"
