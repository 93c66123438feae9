"""Send weights from the learner to the engines, and prove that they arrived.

sync/transfer.py moves them: full tensors through vLLM's loader, or the reshard plan into its live
parameters. This module verifies syncs at the configured cadence, in two ways: checksums of every
tensor on both sides, and greedy continuations of a few probe prompts, which must equal those
transformers computes from the exported tensors. A wrong name, shape, order, dtype or a stale cache
fails one of the two. A mismatch stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from selfemo.config.schema import SyncConfig
from selfemo.megatron.device import Device
from selfemo.megatron.learner import Learner
from selfemo.process import watchdog
from selfemo.rollout.api import Engine, GenerationRequest, LiveParameter
from selfemo.sync.checksums import verify_transfer
from selfemo.sync.probe import GreedyProbe
from selfemo.sync.transfer import choose_transfer


class SyncError(RuntimeError):
    """An engine's continuation differs from the one that the trainer's weights give."""


@dataclass(frozen=True)
class SyncReport:
    """Path, cost and verification of one sync."""

    version: int
    path: str
    """"checkpoint" or "direct"."""
    seconds: float
    """Seconds of the transfer alone, without verification."""
    received_bytes: int
    """Bytes that crossed ranks, over the ranks of one data-parallel replica."""
    lower_bound_bytes: int
    """Fewest bytes that any transfer between these layouts can move, over the same ranks."""
    probed: bool
    """True if the greedy probe ran (and passed: a failure raises)."""
    checksummed_tensors: int
    """Tensors whose checksums were compared (and agreed); 0 if this sync compares none."""
    only_trained: bool = False
    """True if frozen weights were left out, which the engine had from an earlier sync."""


class WeightSync:
    """Sends the learner's weights to this rank's engine and verifies them."""

    def __init__(
        self,
        learner: Learner,
        engine: Engine,
        model_dir: str,
        sync: SyncConfig,
        engine_dtype: str,
        prompts: Sequence[tuple[int, ...]],
    ) -> None:
        """Choose the transfer and, on rank 0, build the probe's model.

        Args:
            prompts: ids of the probe prompts, the same on every rank.

        Raises:
            UserError: sync.mode=direct, but the engine's parameters are not in their plain layout.
        """
        self._learner, self._engine, self._prompts = learner, engine, prompts
        self._settings, self._dtype = sync, engine_dtype
        layout = learner.layout
        self._trainer, self._engines = layout.sizes.trainer, layout.sizes.engines
        self._transfer = choose_transfer(
            sync.mode,
            learner.architecture,
            self._trainer,
            self._engines,
            learner.weight_groups,
            engine,
            layout.rank,
            sync.bucket_bytes,
            learner.train.frozen_layers,
        )
        self._probe = GreedyProbe(model_dir, sync.probe_tokens, engine_dtype) if layout.is_main else None

    def sync(self, version: int, verify: bool = False) -> SyncReport:
        """Send the current weights to every engine, without frozen ones that it has already.

        Collective.

        Args:
            version: number of this sync in the run, from 1; together with the configured cadence it
                decides which checks run.
            verify: run every check whatever the cadence, as after a resume.

        Raises:
            SyncError: an engine's greedy continuation differs from transformers' under the same
                weights.
            WeightMismatch: a tensor's checksum differs; names it.
        """
        settings = self._settings
        probed = verify or version == 1 or _is_due(version - 1, settings.verify_every)
        checksummed = verify or _is_due(version - 1, settings.checksum_every)
        self._engine.wake_up()
        # An engine that slept has no weights left, and one that is verified whole gets all of them.
        frozen = 0 if verify or self._engine.weight_version < 0 else self._learner.train.frozen_layers
        receiver = _NamingReceiver(self._engine)
        report, seconds = timed(
            self._learner.device,
            lambda: self._transfer.send(self._learner.chunks, receiver, version, only_trained=frozen > 0),
        )
        compared = self._compare_checksums(frozen) if checksummed else 0
        if probed:
            self._run_probe(version)
        return SyncReport(
            version,
            report.path,
            seconds,
            report.received_bytes,
            report.lower_bound_bytes,
            probed,
            compared,
            frozen > 0,
        )

    def _compare_checksums(self, frozen_layers: int) -> int:
        learner = self._learner
        with watchdog.doing("checksums of all tensors"):
            return verify_transfer(
                learner.chunks,
                self._engine,
                learner.architecture,
                self._trainer,
                self._engines,
                learner.layout.rank,
                frozen_layers,
            )

    def _run_probe(self, version: int) -> None:
        with watchdog.doing("probe, first tensor"):
            for name, tensor in self._learner.hf_tensors(self._settings.bucket_bytes):
                watchdog.advance(f"probe, tensor {name}")
                if self._probe:
                    self._probe.load(name, tensor)
        with watchdog.doing("greedy probe"):
            self._compare_continuations(version)

    def _compare_continuations(self, version: int) -> None:
        requests = [
            GenerationRequest(prompt, 0, self._settings.probe_tokens, 0.0) for prompt in self._prompts
        ]
        mine = [completion.token_ids for completion in self._engine.generate(requests)]
        continuations: list[list[tuple[int, ...]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(continuations, mine)
        problem = [""]
        if self._probe:
            problem[0] = self._probe.compare(self._prompts, continuations, self._dtype)
        dist.broadcast_object_list(problem, src=0)
        if problem[0]:
            raise SyncError(
                f"weight sync {version}: {problem[0]}; the engines hold other weights than the trainer, "
                "stopping"
            )


class _NamingReceiver:
    """Passes weights on to an engine, and tells the watchdog which tensor is on its way.

    If the transfer hangs, the watchdog's report then names the tensor.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def live_parameters(self) -> Sequence[LiveParameter]:
        return self._engine.live_parameters()

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        with watchdog.doing("first tensor"):
            self._engine.receive_checkpoint_tensors(_named(tensors), version)

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        with watchdog.doing("first tensor"):
            self._engine.copy_direct(_named(tensors), version)


def timed[T](device: Device, work: Callable[[], T]) -> tuple[T, float]:
    """Return the work's result, and the seconds until the device has done it.

    Work that was queued before does not count: on a GPU, calls return when they are queued.
    """
    device.synchronize()
    started = time.perf_counter()
    result = work()
    device.synchronize()
    return result, time.perf_counter() - started


def _named(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        watchdog.advance(f"tensor after {name}")


def _is_due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0
