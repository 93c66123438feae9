"""Trains a model: SFT start, then iterations of self-play, rewards, flywheel, SELF-GRPO step, weight sync.

Every rank runs this file. Two kinds of work are shared out: episodes over the engines, whose ranks also score
them; a training step over Megatron's layout. No rank holds every sample of an iteration: between ranks go
counts and sums, and the samples that evening out the training step moves.

`state.reached` records how far the run has come, and may write a checkpoint there. An interrupted run starts
at the place that its newest checkpoint records.
"""

from __future__ import annotations

from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.labelled import label_counts
from selfemo.evaluation.recognition import report_readings
from selfemo.grpo.advantages import training_samples
from selfemo.process import watchdog
from selfemo.process.collectives import all_or_none, on_rank0
from selfemo.process.stop import StopSignals
from selfemo.process.terminal import Terminal
from selfemo.records.directory import RunDirectory
from selfemo.records.inputs import record_inputs
from selfemo.records.training_dialogues import record_training_dialogues
from selfemo.run.journal import Journal
from selfemo.run.parts import build_parts
from selfemo.run.policy_update import policy_update
from selfemo.run.resume import resume
from selfemo.run.rounds import Rounds
from selfemo.run.state import RunState
from selfemo.run.stoppable import Stopped, StopRequest
from selfemo.run.supervised_examples import StepExamples
from selfemo.run.supervised_start import supervised_start
from selfemo.system import System, build_system, join_world, with_fetched_model


def train(config: RunConfig, run: RunDirectory, terminal: Terminal, signals: StopSignals) -> None:
    """Run the configured training to its end, from its newest checkpoint if it has one.

    Collective: every rank calls it.

    Raises:
        UserError: the model, corpus or layout does not fit the configuration, or checkpoints exist and none
            is good.
    """
    world = join_world(config)
    config = with_fetched_model(config)
    corpus = all_or_none(lambda: load_run_corpus(config))
    on_rank0(lambda: record_training_dialogues(run, corpus, config))
    on_rank0(lambda: record_inputs(run.root, config, corpus))
    terminal.say(
        f"{run.root}: {world.layout.sizes.world_size} processes, corpus {corpus.name}: "
        f"{label_counts(corpus)}; libraries write to {terminal.log_path.parent}"
    )
    journal, stop = Journal(config, run, terminal, world), StopRequest(world.device.torch_device, signals)
    with journal.phase("setup"):
        system = build_system(config, world, run, corpus)
        found = resume(config, run, system, terminal)
        trainer = Trainer(config, system, run, journal, stop)
        if found:
            trainer.state.load(found)
    try:
        stop.check()  # signals have been received since the process began
        trainer.run()
    except Stopped as stopped:
        trainer.state.stop(str(stopped))


class Trainer:
    """Runs the stages of one training run, and holds the parts that they share."""

    def __init__(
        self, config: RunConfig, system: System, run: RunDirectory, journal: Journal, stop: StopRequest
    ) -> None:
        self.config, self.system, self.journal = config, system, journal
        self.parts = parts = build_parts(config, system, run, stop)
        self.state = RunState(config, system, run, journal, parts.flywheel, stop)
        self.rounds = Rounds(config, system, parts, self.state, journal, self.sync)
        self.examples = StepExamples(config, system, parts.flywheel.lessons)

    def run(self) -> None:
        """Run the stages in order, starting with the one that `state.progress` names."""
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
        self.parts.flywheel.close()
        self.journal.finish(self.system, self.parts.flywheel.counts, self.parts.held_out)

    def self_play(self) -> None:
        """Run the self-play iterations that are left; after each one the run can be interrupted."""
        with self.journal.stage("self-play", self.config.iterations) as bar:
            bar.skip(self.state.progress.step)
            for iteration in range(self.state.progress.step, self.config.iterations):
                watchdog.iteration(iteration)
                bar.advance(self.iterate(iteration))
                self.state.reached("self-play", iteration + 1)

    def iterate(self, iteration: int) -> str:
        """Run one iteration: rollout, rewards, policy update, sync; where a round begins, the teacher reads.

        Returns its figures as one line for the progress bar.
        """
        parts = self.parts
        self.rounds.begin(iteration)
        with self.journal.phase("rollout"):
            kept = parts.flywheel.kept_dialogues(before_iteration=iteration)
            mine = parts.episodes.of_engine(range(self.config.selfplay.seeds_per_iteration))
            openings = parts.opening_pool.draw(iteration, kept, self.rounds.taught(iteration), mine)
            episodes = parts.episodes.play(openings, iteration)
            self.system.engine.sleep()
        with self.journal.phase("reward"):
            scored = parts.episodes.score(episodes, parts.rewards, self.config)
            parts.flywheel.offer(scored.own_groups, self.state.progress.weight_version)
        with self.journal.phase("train"):
            batches = parts.dealer.deal(training_samples(scored.groups), scored.own_numbers)
            stats = policy_update(self.config, self.system, self.state, self.examples, iteration, batches)
        self.sync()
        outcomes = parts.flywheel.outcomes(iteration)
        return self.journal.iteration(iteration, scored, batches, stats, outcomes)

    def sync(self) -> None:
        """Send the current weights to every engine, under the next version number."""
        version = self.state.count_sync()
        self.system.learner.offload()
        with self.journal.phase("sync"):
            self.journal.synced(self.system.weight_sync.sync(version))

    def evaluate(self, stage: str) -> None:
        """Measure recognition on the held-out split, greedily.

        Each answer sees the turns up to the one it names, and none after it.
        """
        parts, turns = self.parts, self.parts.held_out
        with self.journal.phase("eval"):
            readings = parts.episodes.read_greedily([turn.context for turn in turns])
            report = report_readings(readings, turns, self.system.corpus.labels, parts.rewards.score)
        self.journal.evaluated(stage, report)
