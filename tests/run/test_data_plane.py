"""Test iterations of self-play over gloo ranks, up to the training step: the outcome is that of one rank.

Advantages, batches, figures, flywheel decisions, records, openings and lessons, to the bit, for engines of
every size; and again if a run is resumed on another number of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from selfemo.commands.flywheel import app, run_of
from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.config.schema import AlgorithmConfig, FlywheelConfig, RunConfig, TrainConfig
from selfemo.corpora.conversation import Corpus
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.grpo.advantages import training_samples
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.parallel import RankLayout
from selfemo.megatron.sample_dealer import SampleDealer
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.reduction import OverRanks
from selfemo.process.stop import StopSignals
from selfemo.records.directory import flywheel_files
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import GenerationRequest
from selfemo.run.episodes import EpisodesByEngine
from selfemo.run.flywheel_peers import open_flywheel
from selfemo.run.iteration import episode_records, iteration_figures
from selfemo.run.stoppable import StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import KeptDialogue, OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.teacher import TaughtTurns
from selfemo.selfplay.transitions import TransitionPrior
from tests.flywheel.test_flywheel import CONFIG, HELD, TRAIN, speak
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, conversation

CPU = torch.device("cpu")
UNLABELLED = [
    conversation(f"u{i}", f"Ann: it went as {i} goes", f"Bo: so it is with {i}", "Ann: fine")
    for i in range(9)
]
CORPUS = Corpus("toy", LABELS, (*TRAIN, *UNLABELLED, *HELD))
PLAY = replace(CONFIG, seeds_per_iteration=9, unlabelled_share=0.4)
RUN = RunConfig(
    selfplay=PLAY,
    algorithm=AlgorithmConfig(weight_by_frequency=True, updates_per_rollout=2),
    train=TrainConfig(max_tokens_per_microbatch=4096),
    flywheel=FlywheelConfig(candidates_per_iteration=8),
)
ITERATIONS = 4


class _Engine(ScriptedGenerator):
    max_length = 10_000


def _speak(prompt: str, request: GenerationRequest) -> str:
    """Answer as `speak`; some replies name the label, so that some episodes end early."""
    return (
        "what a joy it is" if prompt.startswith("Write") and request.seed % 5 == 1 else speak(prompt, request)
    )


@dataclass(frozen=True)
class _Outcome:
    """What a rank has of one iteration."""

    groups: list[str]
    """Of its own episodes, with rewards and advantages; floats written out in full."""
    records: list[Record]
    batches: list[dict[int, TrainingSample]]
    """Per step, by index: the samples that it trains on."""
    figures: dict[str, float]
    outcomes: dict[tuple[bool, str], int]
    kept: list[KeptDialogue]
    lessons: list[Any]
    last_id: int
    dialogues: list[dict[str, Any]]
    """As samples.jsonl would hold them."""


def _play(root: str, size: int, iterations: range) -> list[_Outcome]:
    rank, ranks, engine = dist.get_rank(), dist.get_world_size(), EngineRanks.join(size)
    rewards = Rewards(RUN.reward, TRAIN, LABELS)
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    own_engine = _Engine(_speak)
    play = SelfPlay(own_engine, prompts, rewards.score, TransitionPrior.estimate(TRAIN), PLAY, 5)
    stop = StopRequest(CPU, StopSignals())
    by_engine = EpisodesByEngine(play, own_engine, engine, stop)  # type: ignore[arg-type]
    layout = RankLayout(Layout(1, ranks), rank, 0, 0, 0, data_rank=rank)
    dealer = SampleDealer(RUN.train, 2, PLAY.seeds_per_iteration, layout, engine, CPU)
    pool = OpeningPool(CORPUS, PLAY, 5, 3)
    flywheel = open_flywheel(RUN, CORPUS, rewards, Path(root), engine, CPU)
    found = []
    for iteration in iterations:
        openings = pool.draw(
            iteration,
            flywheel.kept_dialogues(iteration),
            flywheel.lessons.labels(0),
            by_engine.of_engine(range(PLAY.seeds_per_iteration)),
        )
        scored = by_engine.score(by_engine.play(openings, iteration), rewards, RUN)
        records = flywheel.offer(scored.own_groups, iteration + 1)
        batches = dealer.deal(training_samples(scored.groups), scored.own_numbers)
        found.append(
            _Outcome(
                groups=[repr(astuple(replace(group, components=()))) for group in scored.own_groups],
                records=records,
                batches=[dict(batch.samples) for batch in batches],
                figures=iteration_figures(scored.own_groups, OverRanks(CPU)),
                outcomes=flywheel.outcomes(iteration),
                kept=list(flywheel.kept_dialogues()),
                lessons=list(flywheel.lessons.draw(12, 0.5, 0, random.Random(iteration))),
                last_id=flywheel.last_id,
                dialogues=list(episode_records(iteration, scored.own_episodes, scored.own_groups, 2)),
            )
        )
    flywheel.close()
    return found


def _joined(root: Path) -> list[Record]:
    with closing(JoinedStores(flywheel_files(root))) as stores:
        return list(stores.find(Filter()))


@pytest.fixture(scope="module")
def alone(distributed, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[_Outcome], list[Record]]:
    root = tmp_path_factory.mktemp("alone")
    (found,) = distributed(1, _play, str(root), 1, range(ITERATIONS))
    reasons = {record.reason for outcome in found for record in outcome.records}
    assert {
        "consensus",
        "near duplicate",
        "label cap",
        "expression",
        "held-out text",
        "not considered",
    } <= reasons
    return found, _joined(root)


def _same(found: Sequence[list[_Outcome]], alone: list[_Outcome]) -> None:
    for number, one in enumerate(alone):
        of_ranks = [outcomes[number] for outcomes in found]
        assert [group for rank in of_ranks for group in rank.groups] == one.groups
        assert [record for rank in of_ranks for record in rank.records] == one.records
        for step, samples in enumerate(one.batches):
            dealt = [rank.batches[step] for rank in of_ranks]
            assert sorted(index for mine in dealt for index in mine) == sorted(samples)
            assert {index: sample for mine in dealt for index, sample in mine.items()} == samples
        for rank in of_ranks:
            assert repr(rank.figures) == repr(one.figures)
            assert (rank.outcomes, rank.kept, rank.lessons) == (one.outcomes, one.kept, one.lessons)
            assert rank.last_id == one.last_id
        first = of_ranks[0].dialogues
        assert first
        assert first == one.dialogues[: len(first)]


@pytest.mark.parametrize(("ranks", "size"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_the_outcome_is_that_of_one_rank(distributed, alone, tmp_path: Path, ranks: int, size: int) -> None:
    found = distributed(ranks, _play, str(tmp_path), size, range(ITERATIONS))
    outcomes, records = alone
    _same(found, outcomes)
    assert len(flywheel_files(tmp_path)) == ranks // size
    assert _joined(tmp_path) == records
    assert [record.record_id for record in records] == list(range(1, len(records) + 1))


def test_a_run_goes_on_with_other_engines_as_if_it_had_not_stopped(
    distributed, alone, tmp_path: Path
) -> None:
    """One iteration is done again after a checkpoint; its records are cut away first, as resume does."""
    outcomes, records = alone
    distributed(4, _play, str(tmp_path), 2, range(3))
    for path in flywheel_files(tmp_path):
        with closing(FlywheelStore(path, writable=True)) as store:
            store.rewind(outcomes[1].last_id)
    _same(distributed(2, _play, str(tmp_path), 1, range(2, 4)), outcomes[2:])
    assert _joined(tmp_path) == records


def test_a_run_that_began_with_one_file_goes_on(distributed, alone, tmp_path: Path) -> None:
    """Older versions wrote flywheel.sqlite."""
    outcomes, records = alone
    distributed(1, _play, str(tmp_path), 1, range(2))
    (tmp_path / "flywheel" / "engine-00000.sqlite").rename(tmp_path / "flywheel.sqlite")
    _same(distributed(2, _play, str(tmp_path), 1, range(2, 4)), outcomes[2:])
    assert next(path.name for path in flywheel_files(tmp_path)) == "flywheel.sqlite"
    assert _joined(tmp_path) == records


def test_joined_files_answer_as_one_file_with_all_records(distributed, alone, tmp_path: Path) -> None:
    distributed(4, _play, str(tmp_path), 1, range(ITERATIONS))
    one = FlywheelStore(tmp_path / "one.sqlite", writable=True, labels=LABELS)
    one.append(alone[1])
    with closing(JoinedStores(flywheel_files(tmp_path))) as stores:
        for name in ("totals", "lineage", "labels", "last_id", "iterations"):
            assert getattr(stores, name)() == getattr(one, name)(), name
        assert sorted(stores.kept_texts()) == sorted(one.kept_texts())
        for role in ("recognizer", "responder"):
            assert stores.newest_kept(role, 5) == one.newest_kept(role, 5)
        for wanted in (Filter(kept=True), Filter(role="responder", after=9), Filter(reason="label cap")):
            assert list(stores.find(wanted, 7)) == list(one.find(wanted, 7))
        assert stores.read(17) == one.read(17)
        with pytest.raises(UserError, match=f"no record 0; expected 1 to {one.last_id()}"):
            stores.read(0)
    one.close()
    invoke, exported = CliRunner().invoke, []
    for place in (tmp_path, tmp_path / "one.sqlite"):
        out = tmp_path / f"{place.name} exported" / "train.jsonl"
        assert invoke(app, ["export", str(place), str(out)]).exit_code == 0
        exported.append(out.read_text(encoding="utf-8"))
    assert exported[0] == exported[1]
    listed = invoke(app, ["list", str(tmp_path), "--limit", "0"]).output
    assert f"{len(alone[1])} groups offered" in listed
    assert run_of(flywheel_files(tmp_path)[0]) == tmp_path


def _failing(root: str, bad_rank: int) -> str:
    engine, rewards = EngineRanks.join(1), Rewards(RUN.reward, TRAIN, LABELS)
    flywheel = open_flywheel(RUN, CORPUS, rewards, Path(root), engine, CPU)
    try:
        if dist.get_rank() == bad_rank:
            assert flywheel._store is not None
            flywheel._store._connection.execute("pragma query_only = on")
        flywheel.teach([], TaughtTurns((), (), (), ()), 1)
        pool, scripted = OpeningPool(CORPUS, PLAY, 5, 3), _Engine(_speak)
        prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
        play = SelfPlay(scripted, prompts, rewards.score, TransitionPrior.estimate(TRAIN), PLAY, 5)
        stop = StopRequest(CPU, StopSignals())
        by_engine = EpisodesByEngine(play, scripted, engine, stop)  # type: ignore[arg-type]
        openings = by_engine.of_engine(pool.draw(0))
        flywheel.offer(by_engine.score(by_engine.play(openings, 0), rewards, RUN).own_groups, 1)
    except UserError as error:
        return str(error)
    finally:
        flywheel.close()
    return ""


def test_a_file_that_one_engine_cannot_write_ends_all_ranks(distributed, tmp_path: Path) -> None:
    found = distributed(2, _failing, str(tmp_path), 1)
    assert found == [found[0]] * 2
    assert "engine-00001.sqlite: cannot be written" in found[0]


def test_a_disabled_flywheel_asks_nothing_of_the_ranks(distributed, tmp_path: Path) -> None:
    assert distributed(2, _disabled, str(tmp_path)) == [([], {}, [])] * 2
    assert flywheel_files(tmp_path) == []


def _disabled(root: str) -> tuple[list[Record], dict[tuple[bool, str], int], list[KeptDialogue]]:
    config = replace(RUN, flywheel=FlywheelConfig(enabled=False))
    rewards = Rewards(RUN.reward, TRAIN, LABELS)
    flywheel = open_flywheel(config, CORPUS, rewards, Path(root), EngineRanks.join(1), CPU)
    return flywheel.offer([], 1), flywheel.outcomes(0), list(flywheel.kept_dialogues())
