"""Compares an iteration whose recognizer groups read one view with one whose groups read several."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench_iteration.setting import bench_config, build_trainer, ratio_figures

if TYPE_CHECKING:
    from selfemo.run.parts import Parts
    from selfemo.trainer import Trainer


def bench_views(options: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """Run each iteration twice on one trainer: in one view and in `options.views`, in turns.

    Both play the same openings. The flywheel keeps nothing, so neither finds what the other kept.
    """
    config = bench_config(options, run_dir, turns=options.turns)
    config = replace(config, flywheel=replace(config.flywheel, enabled=False))
    trainer = build_trainer(config)
    trainer.state.reference = trainer.system.learner.snapshot()
    trainer.system.learner.begin_stage()
    ways = {count: _parts_with(trainer, count) for count in (1, options.views)}
    ran: list[tuple[int, float]] = []
    for number in range(options.warmup + options.rounds):
        for count in sorted(ways, reverse=bool(number % 2)):
            trainer.parts = ways[count]
            started = time.perf_counter()
            trainer.iterate(number)
            ran.append((count, time.perf_counter() - started))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if line["event"] == "iteration"]
    seconds: dict[str, dict[int, list[float]]] = {}
    for (count, taken), record in zip(ran, records, strict=True):
        for phase, value in {"iteration": taken, **record["seconds"]}.items():
            seconds.setdefault(phase, {one: [] for one in ways})[count].append(value)
    phases = {phase: _figures(both, options) for phase, both in seconds.items()}
    return {
        "prompts": options.prompts,
        "turns": options.turns,
        "group": options.group,
        "views": options.views,
        "rounds": options.rounds,
        "samples": records[0]["samples"],
        "phases": phases,
        "ratio": phases["iteration"]["ratio"],
        "bar": None,
    }


def _figures(seconds: dict[int, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    one, several = (seconds[count][options.warmup :] for count in (1, options.views))
    medians = {"one": statistics.median(one), "several": statistics.median(several)}
    return {**medians, **ratio_figures(several, one)}


def _parts_with(trainer: Trainer, count: int) -> Parts:
    """Return the trainer's parts with self-play in the first `count` of the run's views."""
    from selfemo.process.engine_ranks import EngineRanks
    from selfemo.process.stop import StopSignals
    from selfemo.run.episodes import EpisodesByEngine
    from selfemo.run.stoppable import StopRequest

    parts, config, world = trainer.parts, trainer.config, trainer.system.world
    play = replace(parts.selfplay, config=replace(config.selfplay, views=config.selfplay.views[:count]))
    episodes = EpisodesByEngine(
        play,
        trainer.system.engine,
        EngineRanks.join(1),
        StopRequest(world.device.torch_device, StopSignals()),
        config.rollout.lock_step,
    )
    return replace(parts, selfplay=play, episodes=episodes)
