"""Compares the figures of `selfemo plan` for the run's configuration with those that the run measured.

Bytes are compared whatever the device, and those of weights, gradients, optimizer and reference must be
equal to the byte. Seconds are compared only if the plan is asked for a GPU by name: the planner has no
model of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from selfemo.common.errors import UserError
from selfemo.config.checks import planned_architecture
from selfemo.config.layout import Layout, layout_of
from selfemo.config.schema import RunConfig
from selfemo.models.architecture import Architecture, read_architecture
from selfemo.planning.hardware import gpu_by_name
from selfemo.planning.plan import make_plan
from selfemo.planning.sync import pair_bytes, sync_bytes
from selfemo.planning.trainer_bytes import checkpoint_bytes, trainer_bytes
from selfemo.planning.workload import Workload, workload_of
from selfemo.records.directory import METRICS_NAME, SUMMARY_NAME
from selfemo.records.reading import Json, RunRecords

KINDS = ("weights", "gradients", "optimizer", "reference")


@dataclass(frozen=True)
class Row:
    """One planned figure beside the measured one."""

    name: str
    planned: float
    measured: float
    unit: Literal["bytes", "tokens", "samples", "s"]
    exact: bool
    """Whether the plan promises equality."""
    note: str = ""

    @property
    def difference(self) -> float | None:
        """(measured - planned) / planned; None if nothing was planned."""
        return (self.measured - self.planned) / self.planned if self.planned else None

    @property
    def is_met(self) -> bool:
        return self.exact and self.planned == self.measured


def planned_rows(records: RunRecords, gpu: str = "") -> list[Row]:
    """Return every figure that is both planned and measured, for a finished run.

    `gpu` adds seconds, planned for that GPU.

    Raises:
        UserError: no GPU of that name is known, or the model directory the run started from is gone.
    """
    if records.summary is None:
        return []
    config, architecture = records.config, _architecture(records.root, records.config)
    layout = layout_of(config, 1, records.summary["world_size"])
    _check_ranks(records, layout)
    iterations = records.of("iteration")
    rows = [
        *_trainer_rows(records, architecture, layout),
        *_sync_rows(records, architecture, layout),
        *_checkpoint_rows(records.root, architecture, config),
    ]
    if iterations:
        rows += _workload_rows(config, iterations)
        if gpu:
            rows += _second_rows(records, architecture, layout, _measured_workload(config, iterations), gpu)
    return rows


def _check_ranks(records: RunRecords, layout: Layout) -> None:
    """Refuse records of ranks that the world of the summary does not have."""
    model_parallel = layout.tensor * layout.pipeline * layout.context
    if layout.world_size < 1 or layout.world_size % model_parallel:
        raise UserError(
            f"{records.root / SUMMARY_NAME}: world_size={layout.world_size}, expected a multiple of "
            f"{model_parallel} as the configuration divides the model: restore it as the run wrote it"
        )
    for event in records.of("memory")[-1:]:
        if odd := next((rank for rank in event["ranks"] if int(rank) >= layout.world_size), ""):
            raise UserError(
                f"{records.root / METRICS_NAME}: memory of rank {odd}, expected ranks below "
                f"{layout.world_size}: restore it as the run wrote it"
            )


def _architecture(root: Path, config: RunConfig) -> Architecture:
    exported = root / "model"
    return read_architecture(exported) if exported.is_dir() else planned_architecture(config.model)


def _trainer_rows(records: RunRecords, architecture: Architecture, layout: Layout) -> Iterator[Row]:
    """Return one row per kind of bytes, and a further one for ranks whose planned or held bytes differ."""
    ranks: dict[tuple[str, int, int], list[int]] = {}
    for event in records.of("memory")[-1:]:
        for rank, measured in event["ranks"].items():
            _, copy, stage = layout.coordinates(int(rank))
            planned = trainer_bytes(architecture, layout, stage, copy, records.config.train.dtype)
            for kind in KINDS:
                ranks.setdefault((kind, getattr(planned, kind), measured[kind]), []).append(int(rank))
    for kind, planned_bytes, held_bytes in sorted(ranks, key=lambda key: (KINDS.index(key[0]), ranks[key])):
        names = ranks[kind, planned_bytes, held_bytes]
        on = f"rank {names[0]}" if len(names) == 1 else f"each of ranks {', '.join(map(str, names))}"
        yield Row(
            kind.capitalize(),
            planned_bytes,
            held_bytes,
            "bytes",
            exact=True,
            note=f"on {on}, counted from its allocations",
        )


def _sync_rows(records: RunRecords, architecture: Architecture, layout: Layout) -> Iterator[Row]:
    config = records.config
    for event in records.of("sync")[-1:]:
        only_trained = event.get("only_trained", False)  # not recorded by versions that sent everything
        if event["path"] == "direct":
            pairs = pair_bytes(architecture, layout, config.rollout.dtype, only_trained=only_trained)
            planned = sum(pairs.values())
        else:
            traffic = sync_bytes(architecture, layout, config.rollout.dtype, config.train.dtype, only_trained)
            planned = traffic.checkpoint // layout.weight_copies
        note = (
            f"{event['path']} path, over the ranks of one model replica; the run's figure is "
            "counted from the transfer it carried out"
        )
        yield Row("Weight sync, received", planned, event["received_bytes"], "bytes", exact=True, note=note)


def _checkpoint_rows(root: Path, architecture: Architecture, config: RunConfig) -> Iterator[Row]:
    written = sorted(root.glob("checkpoints/iteration-*"))
    if written:
        size = sum(file.stat().st_size for file in written[-1].rglob("*") if file.is_file())
        note = "planned: tensor data; measured: all files, indices included"
        yield Row(
            "Checkpoint",
            checkpoint_bytes(architecture, config.train.dtype, config.train.frozen_layers),
            size,
            "bytes",
            exact=False,
            note=note,
        )


def _workload_rows(config: RunConfig, iterations: list[Json]) -> Iterator[Row]:
    planned = workload_of(config)
    note = "per iteration; an episode whose replies all fail ends early"
    yield Row(
        "Training samples",
        planned.train_samples,
        _mean(iterations, "samples"),
        "samples",
        exact=False,
        note=note,
    )
    if _have("samples_trained", iterations):
        note = "per iteration; planned as if every group carried a ranking, and seconds as measured"
        yield Row(
            "Samples trained",
            planned.trained_samples,
            _mean(iterations, "samples_trained"),
            "samples",
            exact=False,
            note=note,
        )
    answer, reply = planned.calls[0].lengths, planned.calls[min(1, len(planned.calls) - 1)].lengths
    for role, lengths in (("recognizer", answer), ("responder", reply)):
        field = f"completion_tokens_{role}"
        if _have(field, iterations):
            note = "mean; assumed from the cap where nobody has measured it"
            measured = _mean(iterations, field)
            yield Row(
                f"Completion, {role}", lengths.mean_completion, measured, "tokens", exact=False, note=note
            )


def _measured_workload(config: RunConfig, iterations: list[Json]) -> Workload:
    """Return the workload with measured lengths and measured share of trained samples in place of
    assumed ones.
    """

    def measured(field: str) -> float | None:
        return _mean(iterations, field) if _have(field, iterations) else None

    workload = workload_of(
        config,
        measured("prompt_tokens_recognizer"),
        measured("completion_tokens_recognizer"),
        measured("completion_tokens_responder"),
    )
    trained = measured("samples_trained")
    return (
        workload if not trained else replace(workload, trained_share=trained / _mean(iterations, "samples"))
    )


def _second_rows(
    records: RunRecords, architecture: Architecture, layout: Layout, workload: Workload, gpu: str
) -> Iterator[Row]:
    plan = make_plan(records.config, architecture, layout, workload, gpu_by_name(gpu))
    iterations = records.of("iteration")
    note = f"per iteration, planned for {gpu}; measured on {(records.summary or {})['backend']}"
    pairs = (
        ("rollout", plan.step.generate),
        ("train", plan.step.train + plan.step.logprob),
        ("sync", plan.step.sync),
    )
    for phase, planned in pairs:
        measured = _mean([record["seconds"] for record in iterations], phase)
        yield Row(f"Seconds, {phase}", planned, measured, "s", exact=False, note=note)


def _have(field: str, records: Sequence[Json]) -> bool:
    return all(record.get(field) is not None for record in records)


def _mean(records: Sequence[Json], field: str) -> float:
    return float(sum(record[field] for record in records) / len(records))
