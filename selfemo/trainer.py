"""The whole method, top to bottom: SFT start, then self-play, rewards, flywheel, SELF-GRPO step, weight sync, again.

Every rank runs this file with the same data. Generation is dealt over the engines, prompts, readings and rewards over the ranks, all are
gathered, and a step is dealt over Megatron's layout and reduced; the rest (flywheel rule, advantages) is computed alike on every rank.

`reached` says how far the run has come; a checkpoint may be written there, and a run that was interrupted starts with what its
newest checkpoint says is done.
"""

from __future__ import annotations

from itertools import pairwise

from selfemo import watchdog
from selfemo.assembly import System, build_system, join_world, load_run_corpus
from selfemo.config import RunConfig
from selfemo.dealing import over_ranks
from selfemo.evaluation.metrics import majority_baseline
from selfemo.evaluation.recognition import evaluate_recognition
from selfemo.evaluation.turns import evaluation_turns
from selfemo.finite import check_ratio, check_rewards
from selfemo.flywheel.flywheel import Flywheel
from selfemo.grpo.advantages import loss_config, training_samples
from selfemo.grpo.samples import TrainingSample
from selfemo.journal import Journal
from selfemo.megatron.learner import PolicyStats, batch_counts
from selfemo.megatron.optimizer import warmup_cosine, warmup_linear
from selfemo.megatron.parallel import agreed
from selfemo.resume import resume
from selfemo.rewards.scoring import Rewards
from selfemo.run_directory import FLYWHEEL_NAME, MODEL_NAME, RunDirectory
from selfemo.run_state import RunState
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.seeds_pool import SeedPool
from selfemo.selfplay.sft import SftExamples
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.stop_signals import StopSignals
from selfemo.stopping import GuardedGenerator, Stopped, StopRequest
from selfemo.terminal import Terminal
from selfemo.weights.export import save_hf


def train(config: RunConfig, run: RunDirectory, terminal: Terminal, signals: StopSignals) -> None:
    """Run the configured training to its end, from its newest checkpoint where it has one. Collective; every rank calls it.

    Raises:
        UserError: the model, corpus or layout does not fit the configuration, or no checkpoint of several is good.
    """
    world = join_world(config)
    corpus = agreed(lambda: load_run_corpus(config))
    terminal.say(f"{run.root}: {world.layout.world_size} processes, corpus {corpus.name}; libraries write to {terminal.log_path.parent}")
    journal = Journal(config, run, terminal, world)
    with journal.phase("setup"):
        system = build_system(config, world, run, corpus)
        found = resume(config, run, system, terminal)
        trainer = Trainer(config, system, run, journal, signals)
        if found:
            trainer.state.load(found)
    try:
        trainer.run()
    except Stopped as stopped:
        trainer.stop(str(stopped))


class Trainer:
    """One run: holds what the stages share."""

    def __init__(self, config: RunConfig, system: System, run: RunDirectory, journal: Journal, signals: StopSignals) -> None:
        self.config, self.system, self.run_dir, self.journal = config, system, run, journal
        self.stop_request = StopRequest(system.world.device.torch_device, signals)
        self.generator = GuardedGenerator(system.generator, self.stop_request)
        train_split = system.corpus.split("train")
        self.rewards = Rewards(config.reward, train_split, system.corpus.labels)
        self.seed_pool = SeedPool(system.corpus, config.selfplay, config.seed, config.corpus.history_turns)
        self.selfplay = SelfPlay(
            generator=self.generator,
            prompts=system.prompts,
            score=self.rewards.score,
            transitions=TransitionPrior.estimate(train_split),
            config=config.selfplay,
            run_seed=config.seed,
            deal=over_ranks,
        )
        self.flywheel = Flywheel(
            config.flywheel, system.corpus, self.rewards, run.path(FLYWHEEL_NAME), is_writer=system.world.layout.is_main
        )
        self.loss_config = loss_config(config)
        self.held_out = evaluation_turns(system.corpus.split(config.evaluation.split), config.evaluation.limit)
        self.state = RunState(config, system, run, journal, self.flywheel, self.stop_request)

    def run(self) -> None:
        """All stages in order."""
        self.stop_request.check()  # signals have been listened to since the process began
        if self.state.progress.stage == "start":
            self.sync()
            self.evaluate("start")
            self.state.reached("sft", 0)
        if self.state.progress.stage == "sft":
            self.supervised_start()
            self.sync()
            self.evaluate("sft")
            self.state.reference = self.system.learner.snapshot()
            self.system.learner.begin_stage()
            self.state.reached("self-play", 0)
        self.self_play()
        self.evaluate("final")
        self.save()
        self.journal.allocated(self.system.learner.allocated(self.state.reference))
        self.flywheel.close()
        self.journal.finish(self.system, self.flywheel.counts, majority_baseline(self.held_out))

    def supervised_start(self) -> None:
        """Teach both roles' formats from the training split."""
        sft = self.config.sft
        examples = SftExamples(
            self.system.corpus.split("train"),
            self.system.prompts,
            self.config.selfplay,
            self.config.seed,
            sft.expression_share,
            self.config.model.max_length,
            sft.label_balance,
        )
        self.system.engine.sleep()  # it has answered the evaluation, or proved a resumed run's weights
        with self.journal.stage("SFT", sft.steps) as bar:
            bar.skip(self.state.progress.step)
            for step in range(self.state.progress.step, sft.steps):
                batch = [TrainingSample(e.prompt_ids, e.completion_ids) for e in examples.batch(step, sft.batch_size)]
                with self.journal.phase("sft"):
                    stats = self.system.learner.sft_step(batch, warmup_cosine(step, sft.steps, sft.warmup_steps, sft.learning_rate))
                bar.advance(self.journal.sft_step(step, stats))
                self.state.count_step(f"SFT step {step}", stats, batch)
                self.state.reached("sft", step + 1)

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
            groups = self.rewards.score_groups([group for episode in episodes for group in episode.groups], over_ranks)
            check_rewards(groups, self.config.reward)
            self.flywheel.offer(groups, self.state.progress.weight_version)
            samples = training_samples(groups, self.config)
        with self.journal.phase("train"):
            stats = self.policy_update(iteration, samples)
        self.sync()
        return self.journal.iteration(iteration, episodes, groups, samples, stats, self.flywheel.outcomes(iteration))

    def policy_update(self, iteration: int, samples: list[TrainingSample]) -> list[PolicyStats]:
        """SELF-GRPO: optimizer steps over the rollout batch, against the frozen SFT model as reference."""
        learner, algorithm = self.system.learner, self.config.algorithm
        bounds = [len(samples) * i // algorithm.updates_per_rollout for i in range(algorithm.updates_per_rollout + 1)]
        counts = [batch_counts(samples[start:end]) for start, end in pairwise(bounds)]
        # A sample of weight 0 adds exactly nothing to loss or gradient: the model does not read it, the batch's counts still hold it.
        batches = [[sample for sample in samples[start:end] if sample.weight != 0] for start, end in pairwise(bounds)]
        plans = [learner.plan(batch) for batch in batches]
        reference: list[list] = [[] for _ in plans]
        if self.loss_config.kl_beta > 0:
            with learner.weights_of(self.state.reference):
                reference = [learner.logprobs(plan) for plan in plans]
        # With one update per rollout the policy that is trained is the one that sampled: the ratio is exactly 1.
        old = [learner.logprobs(plan) for plan in plans] if algorithm.updates_per_rollout > 1 else [[] for _ in plans]
        settings = self.config.train
        rate = warmup_linear(
            iteration, self.config.iterations, settings.warmup_steps, settings.learning_rate, settings.final_learning_rate_share
        )
        steps = []
        for batch, plan, ref, previous, whole in zip(batches, plans, reference, old, counts, strict=True):
            stats = learner.policy_step(batch, plan, self.loss_config, rate, reference=ref, old=previous, counts=whole)
            self.state.count_step(f"iteration {iteration}", stats.step, batch)
            if batch:
                check_ratio(stats, on_policy=algorithm.updates_per_rollout == 1)
            steps.append(stats)
        return steps

    def sync(self) -> None:
        """Send the current weights to every engine."""
        self.system.learner.offload()
        with self.journal.phase("sync"):
            self.journal.synced(self.system.weight_sync.sync(self.state.count_sync()))

    def evaluate(self, stage: str) -> None:
        """Greedy recognition on the held-out split, causal context."""
        with self.journal.phase("eval"):
            report = evaluate_recognition(self.generator, self.system.prompts, self.held_out, self.config.selfplay, self.rewards.score)
        self.journal.evaluated(stage, report)

    def save(self) -> None:
        """A checkpoint that any layout can load, and an export that transformers and vLLM load."""
        self.state.checkpoint(wait=True)
        with self.journal.phase("save"):
            save_hf(
                self.run_dir.path(MODEL_NAME),
                self.system.learner.hf_tensors(self.config.sync.bucket_bytes),
                self.system.learner.architecture,
                self.system.model_dir,
                write=self.system.world.layout.is_main,
            )

    def stop(self, signal_name: str) -> None:
        """A signal asked for it: leave everything so that the same command goes on."""
        progress = self.state.progress
        if progress.stage != "start":
            self.state.checkpoint(wait=True)
        watchdog.stop()  # nothing is left that could be lost
        self.flywheel.close()
        where = (
            "before SFT"
            if progress.stage == "start"
            else f"after {progress.step} {'SFT steps' if progress.stage == 'sft' else 'iterations'}"
        )
        self.journal.say(f"stopped by {signal_name} {where}; the same command goes on from there")
