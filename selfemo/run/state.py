"""Counts a run's progress and writes its checkpoints, so that an interruption anywhere loses nothing.

`progress` is counted here alone. The trainer calls `reached` at the places from which a run can go on: there
weights, optimizer and records belong together. A checkpoint holds the state of that moment, even if it is
written a little later, for a signal in the middle of an iteration.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.config.logprob_gap import gap_bounds
from selfemo.config.schema import RunConfig
from selfemo.flywheel.flywheel import Flywheel
from selfemo.megatron.batch import samples_to_write
from selfemo.megatron.learner import Batch
from selfemo.megatron.rng import collect_rng
from selfemo.megatron.step_stats import PolicyStats, StepStats
from selfemo.process import watchdog
from selfemo.records.content import corpus_digest
from selfemo.records.directory import CHECKPOINTS_NAME, DUMP_NAME, MODEL_NAME, RunDirectory
from selfemo.records.manifest import MANIFEST_VERSION, Manifest, Position, Progress, Stage
from selfemo.run.checkpoints import Checkpoints, Found
from selfemo.run.guards import dump_batch, skipped_step
from selfemo.run.journal import Journal
from selfemo.run.logprob_gap import gap_problem
from selfemo.run.resume import code_versions
from selfemo.run.stoppable import StopRequest
from selfemo.system import System
from selfemo.weights.export import save_hf


class RunState:
    """Progress, reference weights and checkpoints of one run. Methods are collective."""

    def __init__(
        self,
        config: RunConfig,
        system: System,
        run: RunDirectory,
        journal: Journal,
        flywheel: Flywheel,
        stop: StopRequest,
    ) -> None:
        self._config, self._system, self._journal, self._flywheel, self._stop = (
            config,
            system,
            journal,
            flywheel,
            stop,
        )
        self._export = run.path(MODEL_NAME)
        self._dump = run.path(DUMP_NAME)
        settings = config.checkpoint
        root = run.path(CHECKPOINTS_NAME)
        self._checkpoints = Checkpoints(
            root, system.learner, settings.keep, in_background=settings.background
        )
        self._code = code_versions()  # now: files changed on disk later are not the code of this process
        self._position = Position()
        self._reached = Progress()
        self._saved: Progress | None = None
        self._reference_digest = ""
        self._round = 0
        self._generators: dict[str, torch.Tensor] = {}
        """State in `reached`: an engine that has generated since then may have drawn from the generators."""
        self.progress = Progress()
        self.reference: list[torch.Tensor] = []
        """The reference weights of self-play, those at the start of its round; empty before it begins."""

    def count_sync(self) -> int:
        """Count a weight sync; returns its number in the run, from 1."""
        self.progress = self.progress.after_sync()
        return self.progress.weight_version

    def count_step(self, where: str, stats: StepStats, batch: Batch) -> None:
        """Count an optimizer step, and report one that was skipped.

        Raises:
            UserError: as many were skipped in a row as are allowed.
        """
        self.progress = self.progress.after_step(stats.applied)
        if not stats.applied:
            in_a_row, limit = self.progress.skipped_in_a_row, self._config.train.max_skipped_steps
            samples = samples_to_write(batch, self._system.world.layout)
            self._journal.say(skipped_step(where, stats, samples, in_a_row, limit, self._dump))

    def check_gap(self, where: str, stats: PolicyStats, batch: Batch) -> None:
        """End the run if engine and trainer give sampled tokens other logprobs than rounding explains.

        Args:
            stats: of a step on `batch` under the weights that sampled it.

        Raises:
            UserError: names the token, both values and the bound; the batch has been written.
        """
        decode = functools.partial(self._system.encoder.decode, show_special=True)
        problem = gap_problem(stats, gap_bounds(self._config), decode)
        if problem:
            dump_batch(self._dump, problem, samples_to_write(batch, self._system.world.layout))
            advice = (
                f"they compute different models; the batch is in {DUMP_NAME}; see docs/troubleshooting.md"
            )
            raise on_all_ranks(UserError(f"{where}: {problem}: {advice}"))

    def begin_round(self, reference: list[torch.Tensor]) -> None:
        """Take the reference weights of the next round; checkpoints store them under its number."""
        self.reference, self._reference_digest, self._round = reference, "", self._round + 1

    def reached(self, stage: Stage, step: int) -> None:
        """Set the place from which the run can go on: `step` steps of `stage` are done and recorded.

        Writes a checkpoint if one is due.

        Raises:
            Stopped: a signal asked for it.
        """
        self.progress = self._reached = dataclasses.replace(self.progress, stage=stage, step=step)
        self._position = dataclasses.replace(self._journal.position, flywheel_records=self._flywheel.last_id)
        self._generators = collect_rng(self._system.world.device.torch_device)
        every = self._config.checkpoint.sft_every if stage == "sft" else self._config.checkpoint.every
        ends_sft = stage == "sft" and step == self._config.sft.steps
        if step and (ends_sft or (every and step % every == 0)):
            self.checkpoint()
        else:
            self._checkpoints.poll()
        self._stop.check()

    def checkpoint(self, wait: bool = False) -> None:
        """Write a checkpoint of the state at the last call of `reached`.

        With `wait` it is complete on return.
        """
        if self._saved != self._reached:
            with self._journal.phase("checkpoint"):
                if self._reached.stage == "self-play" and not self._reference_digest:
                    self._reference_digest = self._checkpoints.save_reference(self.reference, self._round)
                self._checkpoints.save(self._manifest(), self._generators, wait)
            self._saved = self._reached
        if wait:
            self._checkpoints.finish()

    def save(self) -> None:
        """Write a checkpoint that any layout can load, and an export that transformers and vLLM load."""
        self.checkpoint(wait=True)
        learner = self._system.learner
        with self._journal.phase("save"):
            tensors = learner.hf_tensors(self._config.sync.bucket_bytes)
            is_main = self._system.world.layout.is_main
            save_hf(self._export, tensors, learner.architecture, self._system.model_dir, write=is_main)

    def stop(self, signal_name: str) -> None:
        """End the run after a signal, in a state from which the same command goes on."""
        stage, step = self._reached.stage, self._reached.step
        if stage != "start":
            self.checkpoint(wait=True)
        watchdog.stop()  # nothing is left that could be lost
        self._flywheel.close()
        where = (
            "before SFT"
            if stage == "start"
            else f"after {step} {'SFT steps' if stage == 'sft' else 'iterations'}"
        )
        self._journal.say(f"stopped by {signal_name} {where}; the same command goes on from there")

    def load(self, found: Found) -> None:
        """Continue from a checkpoint; the records must have been rewound to it.

        The engines get its weights and are verified to hold them.
        """
        self.progress = self._reached = self._saved = found.manifest.progress
        self._position = found.manifest.position
        self._reference_digest, self._round = found.manifest.reference, found.manifest.round
        self.reference = self._checkpoints.load(found) or []
        self._journal.resume(found.manifest.seconds)
        self._system.weight_sync.sync(self.progress.weight_version, verify=True)
        self._checkpoints.restore_generators(found)
        self._generators = collect_rng(self._system.world.device.torch_device)

    def _manifest(self) -> Manifest:
        return Manifest(
            version=MANIFEST_VERSION,
            progress=self._reached,
            position=self._position,
            config=dataclasses.asdict(self._config),
            world_size=self._system.world.layout.sizes.world_size,
            architecture=dataclasses.asdict(self._system.learner.architecture),
            corpus=corpus_digest(self._system.corpus),
            reference=self._reference_digest,
            round=self._round,
            roles=self._flywheel.role_counts,
            seconds=self._journal.seconds,
            code=self._code,
            files={},
        )
