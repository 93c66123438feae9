"""Builds what plays, scores, deals and keeps the episodes of a run, around its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfemo.config.schema import RunConfig
from selfemo.evaluation.turns import EvaluationTurn, evaluation_turns
from selfemo.flywheel.flywheel import Flywheel
from selfemo.megatron.sample_dealer import SampleDealer
from selfemo.process.collectives import on_rank0
from selfemo.process.engine_ranks import EngineRanks
from selfemo.records.directory import RunDirectory
from selfemo.rewards.scoring import Rewards
from selfemo.run.episodes import EpisodesByEngine
from selfemo.run.flywheel_peers import open_flywheel
from selfemo.run.kept_readings import KeptReadings, reader_digest
from selfemo.run.stoppable import StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.selfplay.word_evidence import WordEvidence
from selfemo.system import System


@dataclass(frozen=True)
class Parts:
    """What the iterations of a run share, beside its models (System) and its progress (RunState)."""

    rewards: Rewards
    opening_pool: OpeningPool
    selfplay: SelfPlay
    """Plays on this rank's engine."""
    episodes: EpisodesByEngine
    """Plays each episode on one engine, and scores it there; reads turns in the same way."""
    dealer: SampleDealer
    flywheel: Flywheel
    held_out: tuple[EvaluationTurn, ...]
    """Turns that the run is evaluated on."""
    kept_readings: KeptReadings | None
    """Of the first teacher, if `selfplay.teacher_cache` is set and the run begins with self-play."""


def build_parts(config: RunConfig, system: System, run: RunDirectory, stop: StopRequest) -> Parts:
    """Build the parts of a run from its configuration and its system. Collective."""
    corpus, world = system.corpus, system.world
    train, device = corpus.split("train"), world.device.torch_device
    rewards = Rewards(config.reward, train, corpus.labels)
    selfplay = SelfPlay(
        generator=system.engine,
        prompts=system.prompts,
        score=rewards.score,
        transitions=TransitionPrior.estimate(train),
        config=config.selfplay,
        run_seed=config.seed,
        words=WordEvidence.fit(train, corpus.labels) if config.selfplay.teacher_words else None,
    )
    opening_pool = OpeningPool(corpus, config.selfplay, config.seed, config.corpus.history_turns)
    ranks = EngineRanks.join(config.rollout.tensor_parallel)
    dealer = SampleDealer(
        config.train,
        config.algorithm.updates_per_rollout,
        config.selfplay.seeds_per_iteration,
        world.layout,
        ranks,
        device,
    )
    return Parts(
        rewards=rewards,
        opening_pool=opening_pool,
        selfplay=selfplay,
        episodes=EpisodesByEngine(selfplay, system.engine, ranks, stop, config.rollout.lock_step),
        dealer=dealer,
        flywheel=open_flywheel(config, corpus, rewards, run.root, ranks, device),
        held_out=evaluation_turns(corpus.split(config.evaluation.split), config.evaluation.limit),
        kept_readings=_kept_readings(config, system),
    )


def _kept_readings(config: RunConfig, system: System) -> KeptReadings | None:
    directory = config.selfplay.teacher_cache
    if not directory or config.selfplay.teacher == "policy" or config.sft.steps:
        return None
    return KeptReadings(Path(directory), on_rank0(lambda: reader_digest(config, system.model_dir)))
