"""Test a teacher's rounds, and an evaluation, over gloo ranks: what is read is that of one rank."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch.distributed as dist

from selfemo.config.schema import FlywheelConfig
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.emotions.answer import Answer, FormatFailure, Reading
from selfemo.flywheel.corpus_turns import CorpusTurns
from selfemo.flywheel.flywheel import FlywheelCounts
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.lessons import Lesson, Reply
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.stop import StopSignals
from selfemo.records.directory import flywheel_files
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.run.episodes import EpisodesByEngine
from selfemo.run.flywheel_peers import open_flywheel
from selfemo.run.kept_readings import KeptReadings
from selfemo.run.rounds import Rounds
from selfemo.run.stoppable import StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool, place_of
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.selfplay.word_evidence import WordEvidence
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, turns
from tests.run.test_data_plane import CORPUS, CPU, RUN, UNLABELLED, _speak

REVEALED = tuple(
    replace(c, turns=tuple(Turn(t.speaker, t.text, ("anger", "joy")) for t in c.turns))
    for c in UNLABELLED[:2]
)
CONFIG = replace(
    RUN,
    iterations=2,
    selfplay=replace(
        RUN.selfplay,
        views=("plain", "labels"),
        teacher="round_start",
        rounds=2,
        teacher_votes="probabilities",
        teacher_words=0.3,
        align_consensus=True,
        align_strength=0.5,
        responder_group_size=4,
    ),
    algorithm=replace(RUN.algorithm, supervised_weight=0.5),
    flywheel=FlywheelConfig(keep_expression=0.3, teach_share=0.5, teach_replies=0.5),
)
WORLDS = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


class _Engine(ScriptedGenerator):
    max_length = 10_000

    def _complete(self, request: GenerationRequest) -> Completion:
        """Score tokens by the prompt, so that every turn has shares of its own."""
        draws = random.Random(crc32(repr(request.prompt_ids).encode()))
        scores = tuple(-3 * draws.random() for _ in request.scored_ids)
        return replace(super()._complete(request), scored_logprobs=scores)


def _answer(prompt: str, request: GenerationRequest) -> str:
    """Answer greedy requests by the prompt: views differ at times, and some answers are no labels."""
    if request.temperature:
        return _speak(prompt, request)
    digest = crc32(prompt.encode())
    return ("joy", "joy, anger", "sadness", "neutral", "happy")[digest % 5]


@dataclass(frozen=True)
class _Outcome:
    """What a rank has after two rounds."""

    told: list[Any]
    """What the journal was told."""
    taught: list[Any]
    lessons: list[Lesson]
    unread: list[Reply]
    counts: FlywheelCounts
    last_id: int
    readings: list[Reading]
    """Of an evaluation."""
    asked: int
    """Requests of the teacher that this rank's engine got."""


def _play(root: str, size: int, kept: str = "") -> _Outcome:
    engines, corpus = EngineRanks.join(size), replace(CORPUS, revealed=REVEALED)
    rewards = Rewards(CONFIG.reward, corpus.split("train"), LABELS)
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    engine, prior = _Engine(_answer), TransitionPrior.estimate(corpus.split("train"))
    words = WordEvidence.fit(corpus.split("train"), LABELS)
    play = SelfPlay(engine, prompts, rewards.score, prior, CONFIG.selfplay, 5, words=words)
    stop = StopRequest(CPU, StopSignals())
    episodes = EpisodesByEngine(play, engine, engines, stop)  # type: ignore[arg-type]
    flywheel = open_flywheel(CONFIG, corpus, rewards, Path(root), engines, CPU)
    pool, told = OpeningPool(corpus, CONFIG.selfplay, 5, 3), []
    parts = SimpleNamespace(
        opening_pool=pool,
        episodes=episodes,
        rewards=rewards,
        flywheel=flywheel,
        kept_readings=KeptReadings(Path(kept), "the start") if kept else None,
    )
    system = SimpleNamespace(
        corpus=corpus,
        world=SimpleNamespace(device=SimpleNamespace(torch_device=CPU)),
        learner=SimpleNamespace(snapshot=list),
    )
    state = SimpleNamespace(progress=SimpleNamespace(weight_version=1), begin_round=lambda _: None)
    journal = SimpleNamespace(phase=lambda _: nullcontext(), taught=lambda *told_now: told.append(told_now))
    rounds = Rounds(CONFIG, system, parts, state, journal, lambda: None)  # type: ignore[arg-type]
    taught: list[Any] = []
    asked = 0
    for iteration in range(CONFIG.iterations):
        engine.calls.clear()
        rounds.begin(iteration)
        asked += sum(map(len, engine.calls))
        labels = rounds.taught(iteration)
        assert labels is not None
        taught.append(list(labels.items()))
        numbers = episodes.of_engine(range(CONFIG.selfplay.seeds_per_iteration))
        openings = pool.draw(iteration, flywheel.kept_dialogues(iteration), labels, numbers)
        scored = episodes.score(episodes.play(openings, iteration), rewards, CONFIG)
        flywheel.offer(scored.own_groups, 1)
    evaluated = [c.turns[:count] for c in corpus.split("train")[:7] for count in (1, 2)]
    outcome = _Outcome(
        told=told,
        taught=taught,
        lessons=list(flywheel.lessons.draw(20, 0.5, 0, random.Random(1))),
        unread=flywheel.lessons.unread(0),
        counts=flywheel.counts,
        last_id=flywheel.last_id,
        readings=episodes.read_greedily(evaluated),
        asked=asked,
    )
    flywheel.close()
    return outcome


def _records(root: Path) -> list[Record]:
    with closing(JoinedStores(flywheel_files(root))) as stores:
        return list(stores.find(Filter()))


@pytest.fixture(scope="module")
def alone(distributed, tmp_path_factory: pytest.TempPathFactory) -> tuple[_Outcome, list[Record]]:
    root = tmp_path_factory.mktemp("alone")
    (found,) = distributed(1, _play, str(root), 1)
    records = _records(root)
    assert {"consensus", "no answer", "read back", "read otherwise"} <= {r.reason for r in records}
    assert {lesson.role for lesson in found.lessons if lesson.shares} == {"recognizer"}
    assert Counter(type(reading) for reading in found.readings).keys() == {Answer, FormatFailure}
    return found, records


@pytest.mark.parametrize(("ranks", "size"), WORLDS)
def test_what_a_teacher_reads_and_teaches_is_that_of_one_rank(
    distributed, alone, tmp_path: Path, ranks: int, size: int
) -> None:
    one, records = alone
    found = distributed(ranks, _play, str(tmp_path), size)
    for rank, outcome in enumerate(found):
        assert repr(outcome.told) == repr(one.told)
        assert rank or outcome.counts == one.counts, "the first rank knows how many were kept"
        assert outcome == replace(one, told=outcome.told, asked=outcome.asked, counts=outcome.counts)
    assert _records(tmp_path) == records
    assert sum(outcome.asked for outcome in found[::size]) == one.asked, "no turn is read twice"
    fewest, most = min(o.asked for o in found), max(o.asked for o in found)
    assert most - fewest <= CONFIG.iterations * len(CONFIG.selfplay.views), "turns are shared out evenly"


@pytest.mark.parametrize(("ranks", "size"), [(1, 1), (2, 1), (4, 2)])
def test_a_run_that_finds_the_first_readings_kept_is_the_run_that_read_them(
    distributed, alone, tmp_path: Path, ranks: int, size: int
) -> None:
    _, records = alone
    kept, asked = tmp_path / "kept", []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        found = distributed(ranks, _play, str(tmp_path / name), size, str(kept))
        assert _records(tmp_path / name) == records
        asked.append(sum(outcome.asked for outcome in found[::size]))
    assert 0 < asked[1] < asked[0], "of two rounds, the second's teacher is another model: it reads"
    assert len(list(kept.iterdir())) == ranks // size, "one file for each engine's call"


def test_each_engine_writes_what_its_ranks_read(distributed, tmp_path: Path) -> None:
    distributed(4, _play, str(tmp_path), 2)
    files = flywheel_files(tmp_path)
    assert len(files) == 2
    for path in files:
        with closing(FlywheelStore(path)) as store:
            assert list(store.find(Filter(reason="consensus")))


def _failing(bad_rank: int) -> str:
    def answer(prompt: str, request: GenerationRequest) -> str:
        if dist.get_rank() == bad_rank:
            raise RuntimeError("the engine is gone")
        return "joy"

    prompts, engine = PromptBuilder(CharEncoder(), LABELS, 3, 80), _Engine(answer)
    rewards = Rewards(CONFIG.reward, CORPUS.split("train"), LABELS)
    prior = TransitionPrior.estimate(CORPUS.split("train"))
    words = WordEvidence.fit(CORPUS.split("train"), LABELS)
    play = SelfPlay(engine, prompts, rewards.score, prior, CONFIG.selfplay, 5, words=words)
    stop = StopRequest(CPU, StopSignals())
    episodes = EpisodesByEngine(play, engine, EngineRanks.join(1), stop)  # type: ignore[arg-type]
    try:
        episodes.read(OpeningPool(CORPUS, CONFIG.selfplay, 5, 3).unlabelled(range(1), 0), 0)
    except RuntimeError as error:
        return str(error)
    return ""


def test_an_engine_that_fails_while_a_teacher_reads_ends_all_ranks(distributed) -> None:
    assert distributed(2, _failing, 1) == ["the engine is gone"] * 2


def test_a_turn_of_the_corpus_is_named_by_numbers_and_found_again() -> None:
    corpus = Corpus("toy", LABELS, CORPUS.conversations, revealed=REVEALED)
    known = CorpusTurns(corpus)
    hidden, shown = UNLABELLED[3], REVEALED[1]
    for dialogue, labels, shares in (
        (hidden, ("sadness",), ()),
        (hidden, ("joy", "anger", "neutral"), (("joy", 0.4), ("anger", 0.3), ("neutral", 0.3))),
        (hidden, ("joy",), (("joy", 0.999998), ("anger", 0.000001), ("sadness", 0.000001))),
        (shown, ("anger",), ()),
    ):
        for first, last in ((0, 0), (0, 1), (1, 2)):
            window = dialogue.turns[first : last + 1]
            lesson = Lesson("recognizer", window, window[-1].speaker, labels, shares=shares)
            row = known.row(place_of(dialogue.key, window), lesson)
            assert len(row) == known.columns
            assert known.lesson(row) == (place_of(dialogue.key, window), lesson)
    other = turns("Ann: nobody said so")
    with pytest.raises(ValueError, match="holds no turns"):
        known.row(place_of(hidden.key, other), Lesson("recognizer", other, "Ann", ("joy",)))
