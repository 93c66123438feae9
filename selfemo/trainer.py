"""The whole method, top to bottom: SFT start, then self-play, rewards, flywheel, SELF-GRPO step, weight sync, again.

Every rank runs this file with the same data. Generation is dealt over the engines and gathered, a step is dealt over Megatron's
layout and reduced; everything between (rewards, flywheel rule, advantages) is cheap and computed alike on every rank.

`progress` says how far the run has come. It changes in `reached` alone, where a checkpoint may be written; a resumed run starts with the
checkpoint's and passes over what it says is done.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch

from selfemo.assembly import System, build_system, join_world, load_run_corpus
from selfemo.checkpoints import Checkpoints, Found
from selfemo.config import RunConfig
from selfemo.corpora.overlap import HeldOutTexts, held_out_texts
from selfemo.evaluation.metrics import majority_baseline
from selfemo.evaluation.recognition import evaluate_recognition
from selfemo.evaluation.turns import evaluation_turns
from selfemo.flywheel.flywheel import Flywheel
from selfemo.grpo.advantages import loss_config, training_samples
from selfemo.grpo.samples import TrainingSample
from selfemo.journal import Journal
from selfemo.megatron.learner import PolicyStats, batch_counts
from selfemo.megatron.optimizer import warmup_cosine, warmup_linear
from selfemo.resume import code_versions, corpus_digest, resume
from selfemo.rewards.scoring import Rewards
from selfemo.run_directory import CHECKPOINTS_NAME, FLYWHEEL_NAME, MODEL_NAME, RunDirectory
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.seeds_pool import SeedPool
from selfemo.selfplay.sft import SftExamples
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.state import MANIFEST_VERSION, Manifest, Position, Progress, Stage
from selfemo.terminal import Terminal
from selfemo.weights.export import save_hf


def train(config: RunConfig, run: RunDirectory, terminal: Terminal) -> None:
    """Run the configured training to its end. Collective; every rank calls it.

    Raises:
        UserError: the model, corpus or layout does not fit the configuration.
    """
    corpus = load_run_corpus(config)
    world = join_world(config)
    terminal.say(f"{run.root}: {world.layout.world_size} processes, corpus {corpus.name}; libraries write to {terminal.log_path.parent}")
    journal = Journal(config, run, terminal, world)
    with journal.phase("setup"):
        system = build_system(config, world, run, corpus)
        found = resume(config, run, system, terminal)
        trainer = Trainer(config, system, run, journal)
        if found:
            trainer.load(found)
    trainer.run()


class Trainer:
    """One run: holds what the stages share."""

    def __init__(self, config: RunConfig, system: System, run: RunDirectory, journal: Journal) -> None:
        self.config, self.system, self.run_dir, self.journal = config, system, run, journal
        train_split = system.corpus.split("train")
        self.rewards = Rewards(config.reward, train_split, system.corpus.labels)
        held_out = HeldOutTexts(held_out_texts(system.corpus))
        self.seed_pool = SeedPool(train_split, config.selfplay, config.seed, config.corpus.history_turns, held_out)
        self.selfplay = SelfPlay(
            generator=system.generator,
            prompts=system.prompts,
            score=self.rewards.score,
            transitions=TransitionPrior.estimate(train_split),
            config=config.selfplay,
            run_seed=config.seed,
        )
        self.flywheel = Flywheel(
            config.flywheel, system.corpus, self.rewards, run.path(FLYWHEEL_NAME), is_writer=system.world.layout.is_main
        )
        self.loss_config = loss_config(config)
        self.held_out = evaluation_turns(system.corpus.split(config.evaluation.split), config.evaluation.limit)
        self.checkpoints = Checkpoints(
            run.path(CHECKPOINTS_NAME), system.learner, config.checkpoint.keep, in_background=config.checkpoint.background
        )
        self.progress, self.position = Progress(), Position()
        self.saved: Progress | None = None
        self.reference: list[torch.Tensor] = []
        self.reference_digest = ""

    def run(self) -> None:
        """All stages in order."""
        if self.progress.stage == "start":
            self.sync()
            self.evaluate("start")
            self.reached("sft", 0)
        if self.progress.stage == "sft":
            self.supervised_start()
            self.sync()
            self.evaluate("sft")
            self.reference = self.system.learner.snapshot()
            self.system.learner.begin_stage()
            self.reached("self-play", 0)
        self.self_play()
        self.evaluate("final")
        self.save()
        self.journal.allocated(self.system.learner.allocated(self.reference))
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
            sft.label_balance,
        )
        with self.journal.stage("SFT", sft.steps) as bar:
            bar.skip(self.progress.step)
            for step in range(self.progress.step, sft.steps):
                batch = [TrainingSample(e.prompt_ids, e.completion_ids) for e in examples.batch(step, sft.batch_size)]
                with self.journal.phase("sft"):
                    stats = self.system.learner.sft_step(batch, warmup_cosine(step, sft.steps, sft.warmup_steps, sft.learning_rate))
                bar.advance(self.journal.sft_step(step, stats))
                self.reached("sft", step + 1)

    def self_play(self) -> None:
        """Self-play and SELF-GRPO, iteration by iteration."""
        with self.journal.stage("self-play", self.config.iterations) as bar:
            bar.skip(self.progress.step)
            for iteration in range(self.progress.step, self.config.iterations):
                bar.advance(self.iterate(iteration))
                self.reached("self-play", iteration + 1)

    def iterate(self, iteration: int) -> str:
        """One turn of the method; returns a line of figures for the progress bar."""
        with self.journal.phase("rollout"):
            seeds = self.seed_pool.draw(iteration, self.flywheel.kept_dialogues(before_iteration=iteration))
            episodes = self.selfplay.play(seeds, iteration)
            self.system.engine.sleep()
        with self.journal.phase("reward"):
            groups = [self.rewards.score_group(group) for episode in episodes for group in episode.groups]
            self.flywheel.offer(groups, self.progress.weight_version)
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
            with learner.weights_of(self.reference):
                reference = [learner.logprobs(plan) for plan in plans]
        # With one update per rollout the policy that is trained is the one that sampled: the ratio is exactly 1.
        old = [learner.logprobs(plan) for plan in plans] if algorithm.updates_per_rollout > 1 else [[] for _ in plans]
        settings = self.config.train
        rate = warmup_linear(
            iteration, self.config.iterations, settings.warmup_steps, settings.learning_rate, settings.final_learning_rate_share
        )
        return [
            learner.policy_step(batch, plan, self.loss_config, rate, reference=ref, old=previous, counts=whole)
            for batch, plan, ref, previous, whole in zip(batches, plans, reference, old, counts, strict=True)
        ]

    def sync(self) -> None:
        """Send the current weights to every engine."""
        self.progress = dataclasses.replace(self.progress, weight_version=self.progress.weight_version + 1)
        self.system.learner.offload()
        with self.journal.phase("sync"):
            self.journal.synced(self.system.weight_sync.sync(self.progress.weight_version))

    def evaluate(self, stage: str) -> None:
        """Greedy recognition on the held-out split, causal context."""
        with self.journal.phase("eval"):
            report = evaluate_recognition(
                self.system.generator, self.system.prompts, self.held_out, self.config.selfplay, self.rewards.score
            )
        self.journal.evaluated(stage, report)

    def reached(self, stage: Stage, step: int) -> None:
        """So much is done, and recorded: from here the run can go on. Writes a checkpoint where one is due."""
        self.progress = dataclasses.replace(self.progress, stage=stage, step=step)
        self.position = dataclasses.replace(self.journal.position, flywheel_records=self.flywheel.last_id)
        every = self.config.checkpoint.sft_every if stage == "sft" else self.config.checkpoint.every
        ends_sft = stage == "sft" and step == self.config.sft.steps
        if step and (ends_sft or (every and step % every == 0)):
            self.checkpoint()
        else:
            self.checkpoints.poll()

    def checkpoint(self, wait: bool = False) -> None:
        """Everything the run needs to go on from where it last was in `reached`; the newest `checkpoint.keep` stay."""
        if self.saved == self.progress:
            return
        with self.journal.phase("checkpoint"):
            needs_reference = self.progress.stage == "self-play" and self.progress.step < self.config.iterations
            if needs_reference and not self.reference_digest:
                self.reference_digest = self.checkpoints.save_reference(self.reference)
            self.checkpoints.save(self.manifest(), wait)
        self.saved = self.progress

    def manifest(self) -> Manifest:
        """What a checkpoint says of the run as it was when it last was in `reached`."""
        return Manifest(
            version=MANIFEST_VERSION,
            progress=self.progress,
            position=self.position,
            config=dataclasses.asdict(self.config),
            world_size=self.system.world.layout.world_size,
            architecture=dataclasses.asdict(self.system.learner.architecture),
            corpus=corpus_digest(self.system.corpus),
            reference=self.reference_digest,
            roles=self.flywheel.role_counts,
            seconds=self.journal.seconds,
            code=code_versions(),
            files={},
        )

    def load(self, found: Found) -> None:
        """Go on from a checkpoint; the records have been rewound to it. The engines get its weights, and prove that they hold them."""
        self.progress, self.position, self.saved = found.manifest.progress, found.manifest.position, found.manifest.progress
        self.reference_digest = found.manifest.reference
        self.reference = self.checkpoints.load(found) or []
        self.journal.resume(found.manifest.seconds)
        self.system.weight_sync.sync(self.progress.weight_version, verify=True)
        self.checkpoints.restore_generators(found)

    def save(self) -> None:
        """A checkpoint that any layout can load, and an export that transformers and vLLM load."""
        self.checkpoint(wait=True)
        self.checkpoints.finish()
        with self.journal.phase("save"):
            save_hf(
                self.run_dir.path(MODEL_NAME),
                self.system.learner.hf_tensors(self.config.sync.bucket_bytes),
                self.system.learner.architecture,
                self.system.model_dir,
                write=self.system.world.layout.is_main,
            )
