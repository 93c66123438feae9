"""The whole method, top to bottom: SFT start, then self-play, rewards, flywheel, SELF-GRPO step, weight sync, again.

Every rank runs this file with the same data. Generation is dealt over the engines, prompts, readings and rewards
over the ranks, all are gathered, and a step is dealt over Megatron's layout and reduced; the rest (flywheel rule,
advantages) is computed alike on every rank.

`state.reached` says how far the run has come; a checkpoint may be written there, and a run that was interrupted
starts with what its newest checkpoint says is done.
"""

from __future__ import annotations

from itertools import pairwise

from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.labelled import label_counts
from selfemo.evaluation.metrics import majority_baseline
from selfemo.evaluation.recognition import evaluate_recognition
from selfemo.evaluation.turns import evaluation_turns
from selfemo.flywheel.flywheel import Flywheel
from selfemo.grpo.advantages import loss_config, training_samples, with_advantages
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.learner import PolicyStats, batch_counts
from selfemo.megatron.optimizer import warmup_linear
from selfemo.process import watchdog
from selfemo.process.collectives import all_or_none, on_rank0
from selfemo.process.dealing import map_over_ranks
from selfemo.process.stop import StopSignals
from selfemo.process.terminal import Terminal
from selfemo.records.directory import FLYWHEEL_NAME, RunDirectory
from selfemo.records.training_dialogues import record_training_dialogues
from selfemo.rewards.scoring import Rewards
from selfemo.run.guards import check_ratio, check_rewards
from selfemo.run.journal import Journal
from selfemo.run.resume import resume
from selfemo.run.state import RunState
from selfemo.run.stoppable import GuardedGenerator, Stopped, StopRequest
from selfemo.run.supervised_start import supervised_start
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.system import System, build_system, join_world


def train(config: RunConfig, run: RunDirectory, terminal: Terminal, signals: StopSignals) -> None:
    """Run the configured training to its end, from its newest checkpoint where it has one. Collective; every rank calls it.

    Raises:
        UserError: the model, corpus or layout does not fit the configuration, or no checkpoint of several is good.
    """
    world = join_world(config)
    corpus = all_or_none(lambda: load_run_corpus(config))
    on_rank0(lambda: record_training_dialogues(run, corpus, config))
    terminal.say(
        f"{run.root}: {world.layout.world_size} processes, corpus {corpus.name}: {label_counts(corpus)}; "
        f"libraries write to {terminal.log_path.parent}"
    )
    journal, stop = Journal(config, run, terminal, world), StopRequest(world.device.torch_device, signals)
    with journal.phase("setup"):
        system = build_system(config, world, run, corpus)
        found = resume(config, run, system, terminal)
        trainer = Trainer(config, system, run, journal, stop)
        if found:
            trainer.state.load(found)
    try:
        stop.check()  # signals have been listened to since the process began
        trainer.run()
    except Stopped as stopped:
        trainer.state.stop(str(stopped))


class Trainer:
    """One run: holds what the stages share."""

    def __init__(
        self, config: RunConfig, system: System, run: RunDirectory, journal: Journal, stop: StopRequest
    ) -> None:
        self.config, self.system, self.journal = config, system, journal
        self.generator = GuardedGenerator(system.generator, stop)
        train_split = system.corpus.split("train")
        self.rewards = Rewards(config.reward, train_split, system.corpus.labels)
        self.seed_pool = OpeningPool(system.corpus, config.selfplay, config.seed, config.corpus.history_turns)
        self.selfplay = SelfPlay(
            generator=self.generator,
            prompts=system.prompts,
            score=self.rewards.score,
            transitions=TransitionPrior.estimate(train_split),
            config=config.selfplay,
            run_seed=config.seed,
            deal=map_over_ranks,
        )
        is_main, path = system.world.layout.is_main, run.path(FLYWHEEL_NAME)
        self.flywheel = Flywheel(config.flywheel, system.corpus, self.rewards, path, is_writer=is_main)
        self.loss_config = loss_config(config)
        self.held_out = evaluation_turns(
            system.corpus.split(config.evaluation.split), config.evaluation.limit
        )
        self.state = RunState(config, system, run, journal, self.flywheel, stop)

    def run(self) -> None:
        """All stages in order, from the one that the run is in."""
        if self.state.progress.stage == "start":
            self.sync()
            self.evaluate("start")
            self.state.reached("sft", 0)
        if self.state.progress.stage == "sft":
            supervised_start(self.config, self.system, self.state, self.journal)
            self.sync()
            self.evaluate("sft")
            self.state.reference = self.system.learner.snapshot()
            self.system.learner.begin_stage()
            self.state.reached("self-play", 0)
        self.self_play()
        self.evaluate("final")
        self.state.save()
        self.journal.allocated(self.system.learner.allocated(self.state.reference))
        self.flywheel.close()
        self.journal.finish(self.system, self.flywheel.counts, majority_baseline(self.held_out))

    def self_play(self) -> None:
        """Self-play and SELF-GRPO, iteration by iteration."""
        with self.journal.stage("self-play", self.config.iterations) as bar:
            bar.skip(self.state.progress.step)
            for iteration in range(self.state.progress.step, self.config.iterations):
                watchdog.iteration(iteration)
                bar.advance(self.iterate(iteration))
                self.state.reached("self-play", iteration + 1)

    def iterate(self, iteration: int) -> str:
        """One turn of the method; returns a line of figures for the progress bar."""
        with self.journal.phase("rollout"):
            seeds = self.seed_pool.draw(iteration, self.flywheel.kept_dialogues(before_iteration=iteration))
            episodes = self.selfplay.play(seeds, iteration)
            self.system.engine.sleep()
        with self.journal.phase("reward"):
            groups = self.rewards.score_groups(
                [group for episode in episodes for group in episode.groups], map_over_ranks
            )
            check_rewards(groups, self.config.reward)
            self.flywheel.offer(groups, self.state.progress.weight_version)
            groups = with_advantages(groups, self.config)
            samples = training_samples(groups)
        with self.journal.phase("train"):
            stats = self.policy_update(iteration, samples)
        self.sync()
        return self.journal.iteration(
            iteration, episodes, groups, samples, stats, self.flywheel.outcomes(iteration)
        )

    def policy_update(self, iteration: int, samples: list[TrainingSample]) -> list[PolicyStats]:
        """SELF-GRPO: optimizer steps over the rollout batch, against the frozen SFT model as reference."""
        learner, updates, settings = (
            self.system.learner,
            self.config.algorithm.updates_per_rollout,
            self.config.train,
        )
        bounds = [len(samples) * i // updates for i in range(updates + 1)]
        counts = [batch_counts(samples[start:end]) for start, end in pairwise(bounds)]
        # A sample of weight 0 adds exactly nothing to loss or gradient: the model does not read it, the batch's counts still hold it.
        batches = [
            [sample for sample in samples[start:end] if sample.weight != 0] for start, end in pairwise(bounds)
        ]
        plans = [learner.plan(batch) for batch in batches]
        reference: list[list] = [[] for _ in plans]
        if self.loss_config.kl_beta > 0:
            with learner.weights_of(self.state.reference):
                reference = [learner.logprobs(plan) for plan in plans]
        # With one update per rollout the policy that is trained is the one that sampled: the ratio is exactly 1.
        old = [learner.logprobs(plan) for plan in plans] if updates > 1 else [[] for _ in plans]
        rate = warmup_linear(
            iteration,
            self.config.iterations,
            settings.warmup_steps,
            settings.learning_rate,
            settings.final_learning_rate_share,
        )
        steps = []
        for batch, plan, ref, previous, whole in zip(batches, plans, reference, old, counts, strict=True):
            stats = learner.policy_step(
                batch, plan, self.loss_config, rate, reference=ref, old=previous, counts=whole
            )
            self.state.count_step(f"iteration {iteration}", stats.step, batch)
            if batch:
                check_ratio(stats, on_policy=updates == 1)
            steps.append(stats)
        return steps

    def sync(self) -> None:
        """Send the current weights to every engine."""
        version = self.state.count_sync()
        self.system.learner.offload()
        with self.journal.phase("sync"):
            self.journal.synced(self.system.weight_sync.sync(version))

    def evaluate(self, stage: str) -> None:
        """Greedy recognition on the held-out split, causal context."""
        with self.journal.phase("eval"):
            report = evaluate_recognition(
                self.generator, self.system.prompts, self.held_out, self.config.selfplay, self.rewards.score
            )
        self.journal.evaluated(stage, report)
