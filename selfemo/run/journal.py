"""Records a run: seconds by phase, metrics.jsonl, samples.jsonl, the tables on the terminal and summary.json.

The trainer reports events, and the journal decides how they are written and shown. Only rank 0 writes. The
summary is computed from the records in metrics.jsonl, so a run that was interrupted gets the same summary as
one that was not.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from selfemo.common.files import size_of
from selfemo.config.logprob_gap import gap_bounds
from selfemo.config.schema import RunConfig
from selfemo.corpora.labelled import label_counts
from selfemo.emotions.answer import Answer
from selfemo.evaluation.metrics import MajorityBaseline, majority_baseline
from selfemo.evaluation.recognition import RecognitionReport
from selfemo.evaluation.turns import EvaluationTurn
from selfemo.flywheel.flywheel import FlywheelCounts
from selfemo.megatron.batch import DealtBatch
from selfemo.megatron.step_stats import PolicyStats, StepStats
from selfemo.process import watchdog
from selfemo.process.reduction import OverRanks
from selfemo.process.terminal import Bar, Terminal
from selfemo.records.directory import METRICS_NAME, MODEL_NAME, SAMPLES_NAME, SUMMARY_NAME, RunDirectory
from selfemo.records.manifest import Position
from selfemo.records.reading import read_events
from selfemo.report.model_card import model_card
from selfemo.report.vote_card import CARD_NAME
from selfemo.rollout.vllm_engine import engine_version
from selfemo.run.episodes import ScoredEpisodes
from selfemo.run.iteration import (
    episode_records,
    iteration_figures,
    outcome_counts,
    policy_figures,
)
from selfemo.run.outcome import (
    chat_lines,
    dialogue_lines,
    figure_rows,
    primary,
    turn_lines,
    verdict,
    with_intervals,
)
from selfemo.run.spans import PhaseSpans, gather_by_rank
from selfemo.run.trackers import Tracking
from selfemo.selfplay.teacher import TeacherFigures
from selfemo.sync.sync import SyncReport
from selfemo.system import System, World

SCHEMA = 1
THIRDS = 3
EPISODES_LOGGED = 2
"""Dialogues per iteration written to samples.jsonl, with every candidate."""
FIGURES = ("accuracy", "weighted_f1", "macro_f1", "n")
SUMMARY_EVENTS = ("sync", "eval", "iteration")
SUMMARY_PHASES = ("sft", "rollout", "train", "sync", "eval")


class Journal:
    """The records of one run."""

    def __init__(self, config: RunConfig, run: RunDirectory, terminal: Terminal, world: World) -> None:
        self._config, self._run, self._terminal, self._world = config, run, terminal, world
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._events: dict[str, list[dict[str, Any]]] = {name: [] for name in SUMMARY_EVENTS}
        self._last: dict[str, float] = {}
        self._spans = PhaseSpans()
        self._tracking = Tracking(run.path(METRICS_NAME), config)

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent so far, in all and by phase, with the time before a resume."""
        return {"total": time.perf_counter() - self._started, **self._seconds}

    @property
    def position(self) -> Position:
        """Length of the records at present; the flywheel counts its own."""
        return Position(size_of(self._run.path(METRICS_NAME)), size_of(self._run.path(SAMPLES_NAME)))

    def resume(self, seconds: Mapping[str, float]) -> None:
        """Continue with the records and seconds of an interrupted run.

        Rank 0 alone reads the records, since it alone sums them up.

        Raises:
            UserError: on rank 0, if a record is damaged.
        """
        self._seconds = {name: value for name, value in seconds.items() if name != "total"}
        self._started -= seconds["total"]
        if self._world.layout.is_main:
            for record in read_events(self._run.path(METRICS_NAME)):
                self._remember(record)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase, and give it the watchdog's deadline."""
        began, started = time.time(), time.perf_counter()
        with watchdog.phase(name):
            yield
            self._world.device.synchronize()
        self._last[name] = time.perf_counter() - started
        self._seconds[name] = self._seconds.get(name, 0.0) + self._last[name]
        self._spans.add(name, began, began + self._last[name])

    def say(self, text: str) -> None:
        """Show the user one line."""
        self._terminal.say(text)

    def stage(self, name: str, total: int) -> AbstractContextManager[Bar]:
        """Show a progress bar for a stage."""
        return self._terminal.progress(name, total)

    def sft_step(self, step: int, stats: StepStats) -> str:
        self._write(
            {
                "event": "sft",
                "step": step,
                "loss": stats.loss,
                "grad_norm": stats.grad_norm,
                "learning_rate": stats.learning_rate,
                "tokens": stats.tokens,
                "step_applied": stats.applied,
            }
        )
        return f"loss {stats.loss:.3f}"

    def synced(self, report: SyncReport) -> None:
        self._write(
            {
                "event": "sync",
                "version": report.version,
                "seconds": report.seconds,
                "path": report.path,
                "received_bytes": report.received_bytes,
                "lower_bound_bytes": report.lower_bound_bytes,
                "probed": report.probed,
                "checksummed_tensors": report.checksummed_tensors,
                "only_trained": report.only_trained,
            }
        )

    def evaluated(self, stage: str, report: RecognitionReport) -> None:
        figures = report.classification
        extra = {
            "siou": report.siou,
            "exact_match": report.exact_match,
            "format_failure_rate": figures.format_failure_rate,
            "label_entropy": figures.label_entropy,
            "neutral_share": figures.neutral_share,
            "per_label_f1": {row.label: row.f1 for row in figures.per_label},
            # rows: gold, in the order of per_label_f1; columns: predicted, the same order, then no answer
            "confusion": figures.confusion,
            # the labels of each turn's answer, none for a format failure
            "readings": [list(r.labels) if isinstance(r, Answer) else [] for r in report.readings],
        }
        self._write({"event": "eval", "stage": stage, **_figures(report), **extra})
        self._write_phases()
        self._terminal.say(
            f"{stage:<6} {self._config.evaluation.split}: accuracy {report.accuracy:.3f}, "
            f"weighted F1 {report.weighted_f1:.3f}, "
            f"macro F1 {report.macro_f1:.3f}, format failures {report.format_failure_rate:.1%} "
            f"of {report.n} turns"
        )

    def taught(self, iteration: int, read: TeacherFigures, replies: int, as_meant: int) -> None:
        """Record what the teacher read where a round begins.

        Args:
            replies: number of kept replies that it read.
            as_meant: number of those that it read as they were meant.
        """
        first = Counter(read.first)
        self._write(
            {
                "event": "teacher",
                "iteration": iteration,
                "turns": read.turns,
                "agreement": read.agreement,
                "labels": dict(sorted(first.items())),
                "weights": dict(read.weights),
                "replies": replies,
                "replies_read_as_meant": as_meant,
            }
        )
        self._terminal.say(
            f"teacher read {read.turns} turns without labels; {first.total()} of them teach: "
            + ", ".join(f"{label} {count}" for label, count in first.most_common())
            + (f"; it read {as_meant} of {replies} replies as they were meant" if replies else "")
        )

    def iteration(
        self,
        iteration: int,
        scored: ScoredEpisodes,
        batches: Sequence[DealtBatch],
        stats: Sequence[PolicyStats],
        outcomes: Mapping[tuple[bool, str], int],
    ) -> str:
        """Record one SELF-GRPO iteration; returns its figures for the progress bar. Collective.

        Args:
            scored: the first episodes that rank 0 answers for are written whole.
            outcomes: the flywheel's decisions on the groups of all ranks, counted by (kept, reason).
        """
        bounds = gap_bounds(self._config)
        figures = iteration_figures(scored.own_groups, OverRanks(self._world.device.torch_device))
        self._write(
            {
                "event": "iteration",
                "iteration": iteration,
                **figures,
                "samples_moved": sum(batch.moved_samples for batch in batches),
                "moved_bytes": sum(batch.moved_bytes for batch in batches),
                "flywheel": outcome_counts(outcomes),
                **policy_figures(stats),
                "logprob_gap_max_bound": bounds.largest,
                "logprob_gap_mean_bound": bounds.mean,
                "seconds": {name: self._last[name] for name in ("rollout", "reward", "train", "sync")},
            }
        )
        if self._world.layout.is_main:
            self._run.append_jsonl(
                SAMPLES_NAME,
                *episode_records(iteration, scored.own_episodes, scored.own_groups, EPISODES_LOGGED),
            )
        self._write_phases()
        return f"reward {figures['reward']:.3f}  {figures['tokens'] / self._last['rollout']:.0f} tok/s"

    def allocated(self, held_bytes: Mapping[str, int]) -> None:
        """Record the memory that each rank holds for training, {kind: bytes}. Collective."""
        self._write({"event": "memory", "ranks": gather_by_rank(dict(held_bytes))})

    def finish(self, system: System, flywheel: FlywheelCounts, turns: Sequence[EvaluationTurn]) -> None:
        """Write model card and summary.json, and show the run's result. Every rank calls it; rank 0 writes.

        The model must be exported already, since its card goes beside it.

        Args:
            turns: the turns that every evaluation read.
        """
        self._write_phases()
        if not self._world.layout.is_main:
            return
        majority = majority_baseline(turns)
        layout, syncs, iterations = self._world.layout, self._events["sync"], self._events["iteration"]
        play = self._config.selfplay
        evaluations = {
            event["stage"]: {name: event[name] for name in FIGURES} for event in self._events["eval"]
        }
        seconds, tokens = self.seconds, sum(event["tokens"] for event in iterations)
        summary = {
            "schema": SCHEMA,
            "world_size": layout.sizes.world_size,
            "tensor_parallel": layout.sizes.tensor,
            "pipeline_parallel": layout.sizes.pipeline,
            "data_parallel": layout.sizes.data,
            "backend": self._world.device.backend,
            "trainer": f"megatron-core {importlib.metadata.version('megatron-core')}",
            "engine": engine_version(),
            "corpus": system.corpus.name,
            "training_dialogues": dataclasses.asdict(label_counts(system.corpus)),
            "iterations": self._config.iterations,
            "eval": {"majority": _figures(majority), **evaluations},
            "rollout": {
                "samples": sum(event["samples"] for event in iterations),
                "tokens": tokens,
                "tokens_per_second": tokens / seconds["rollout"] if tokens else 0.0,
            },
            "logprob_gap_max": max((event["logprob_gap_max"] for event in iterations), default=0.0),
            "weight_sync": {
                "count": len(syncs),
                "for_teacher": 2 * (play.rounds - 1) if play.teacher == "average" else 0,
                "bytes_per_sync": syncs[-1]["received_bytes"],
                "seconds_mean": sum(event["seconds"] for event in syncs) / len(syncs),
                # a probe that fails raises; sync.verify_every decides how many run
                "greedy_match": syncs[0]["probed"],
                "probes": sum(event["probed"] for event in syncs),
                "path": syncs[-1]["path"],
                "lower_bound_bytes": syncs[-1]["lower_bound_bytes"],
            },
            "flywheel": {"offered": flywheel.offered, "kept": flywheel.kept},
            "seconds": {
                "total": seconds["total"],
                **{name: seconds.get(name, 0.0) for name in SUMMARY_PHASES},
            },
        }
        self._tracking.close()
        card = model_card(self._config, system.corpus.labels, summary)
        self._run.write_text(f"{MODEL_NAME}/{CARD_NAME}", card)
        self._run.write_json(SUMMARY_NAME, summary)  # last: it marks the run as complete
        self._show_recognition(summary, majority, turns)
        self._show(summary)

    def _show_recognition(
        self, summary: dict[str, Any], majority: MajorityBaseline, turns: Sequence[EvaluationTurn]
    ) -> None:
        # a part of the run that an older version did recorded none
        events = [event for event in self._events["eval"] if "readings" in event]
        readings = {event["stage"]: event["readings"] for event in events}
        if not self._config.iterations:
            readings.pop("final", None)
        predicted = {stage: primary(mine) for stage, mine in readings.items()}
        always = {"majority": [majority.label] * len(turns)}
        intervals = with_intervals(always | predicted, turns, self._config.seed)
        split = self._config.evaluation.split
        self._terminal.table(
            f"Emotion recognition, {summary['corpus']} {split}, {len(turns)} turns; intervals of 95%",
            ["model", "accuracy", "weighted F1", "macro F1"],
            figure_rows(intervals),
        )
        if said := verdict(intervals):
            self._terminal.say(said)
        self._terminal.say(f"turns of {split}, and what each stage read in them")
        for line in (*turn_lines(turns, readings), *dialogue_lines(self._run.path(SAMPLES_NAME))):
            self._terminal.say(line)

    def _show(self, summary: dict[str, Any]) -> None:
        seconds, sync = summary["seconds"], summary["weight_sync"]
        rewards = [event["reward"] for event in self._events["iteration"]]
        if len(rewards) >= THIRDS:
            third = len(rewards) // THIRDS
            first, final = (sum(part) / third for part in (rewards[:third], rewards[-third:]))
            self._terminal.say(
                f"reward      {first:.3f} in the first third of iterations, {final:.3f} in the last"
            )
        self._terminal.say(
            f"rollout     {summary['rollout']['samples']} samples, "
            f"{summary['rollout']['tokens_per_second']:.0f} tokens/s; "
            f"largest engine-trainer logprob gap {summary['logprob_gap_max']:.1e}"
        )
        self._terminal.say(
            f"weight sync {sync['count']} times, {sync['bytes_per_sync'] / 1e6:.1f} MB between ranks "
            f"in {sync['seconds_mean']:.3f} s "
            f"on average, greedy probe matched {sync['probes']} times"
        )
        self._terminal.say(
            f"flywheel    {summary['flywheel']['kept']} of {summary['flywheel']['offered']} groups kept"
        )
        self._terminal.say(
            "seconds     " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        )
        self._terminal.say(
            f"results     {self._run.path(SUMMARY_NAME)}; "
            f"export for transformers and vLLM: {self._run.path(MODEL_NAME)}"
        )
        for line in chat_lines(self._run.path(MODEL_NAME)):
            self._terminal.say(line)

    def _write_phases(self) -> None:
        """Record when each rank was in which phase, since the last such record. Collective."""
        self._write({"event": "phases", "ranks": self._spans.gather()})

    def _write(self, record: dict[str, Any]) -> None:
        if self._world.layout.is_main:
            record = _finite(record)
            self._run.append_jsonl(METRICS_NAME, record)
            self._tracking.log(record)
            self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        if record["event"] in self._events:
            self._events[record["event"]].append(record)


def _finite(value: Any) -> Any:
    """Replace a figure that is not finite by null, since JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(report: RecognitionReport | MajorityBaseline) -> dict[str, float]:
    return {name: getattr(report, name) for name in FIGURES}
