"""Plants recognisable labels in hidden dialogues and looks for them in priors, examples, groups, records.

The same search finds them where they may be: in the openings of the oracle, which alone get them back.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfemo.config.schema import FlywheelConfig, RewardConfig, RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.registry import load_corpus
from selfemo.flywheel.flywheel import Flywheel
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.records.training_dialogues import training_dialogues
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import GenerationRequest
from selfemo.run.iteration import episode_records
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.sft import SftExamples
from selfemo.selfplay.teacher import labels_to_teach, read_turns
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.selfplay.word_evidence import WordEvidence
from tests.helpers.hidden_labels import IDS, LABEL_SET, PLANTED, config_for, shown_ids, write_corpus
from tests.helpers.scripted import CharEncoder, ScriptedGenerator

ITERATIONS = 6
REWARD = RewardConfig(frequency_exponent=0.5)


def speak(prompt: str, request: GenerationRequest) -> str:
    """Answers and replies that never name the planted label themselves."""
    if prompt.startswith("Write"):
        return f"word{request.seed % 1009} word{request.seed % 1013} grand word{request.seed % 997}"
    return "joy" if request.seed % 6 else "anger"


def parts_of(config: RunConfig, corpus: Corpus, path: Path) -> Iterator[tuple[str, Any]]:
    """(name, what in it could hold a label) of all that a run makes of a corpus, wired as in the trainer."""
    train, play = corpus.split("train"), config.selfplay
    rewards, prior = Rewards(REWARD, train, corpus.labels), TransitionPrior.estimate(train)
    prompts = PromptBuilder(CharEncoder(), corpus.labels, 3, 200)
    yield "transition prior", dataclasses.asdict(prior)
    yield "word counts", WordEvidence.fit(train, corpus.labels).labels
    yield "label shares", [label for label, share in rewards.label_shares.items() if share]
    examples = SftExamples(train, prompts, play, config.seed, 0.25, 10_000)
    taught = [examples.example(slot) for slot in range(8 * len(IDS))]
    yield (
        "supervised answers",
        [CharEncoder().decode(example.completion_ids) for example in taught if example.role == "recognizer"],
    )
    asked = [CharEncoder().decode(example.prompt_ids) for example in taught]
    yield "supervised prompts of hidden dialogues", [text for text in asked if _hidden(text)]
    pool, flywheel = (
        OpeningPool(corpus, play, config.seed, 3),
        Flywheel(FlywheelConfig(), corpus, rewards, path, is_writer=True),
    )
    selfplay = SelfPlay(ScriptedGenerator(speak), prompts, rewards.score, prior, play, config.seed)
    openings, groups, samples = [], [], []
    for iteration in range(ITERATIONS):
        drawn = pool.draw(iteration, flywheel.kept_dialogues(iteration))
        episodes = selfplay.play(drawn, iteration)
        scored = rewards.score_groups([group for episode in episodes for group in episode.groups])
        flywheel.offer(scored, iteration)
        scored = [replace(group, advantages=group.totals) for group in scored]
        openings += [(opening.turns, opening.next_turn) for opening in drawn]
        groups += [
            (g.group.gold, g.group.target, g.group.context, g.group.consensus, g.frequency_weight)
            for g in scored
        ]
        samples += list(episode_records(iteration, episodes, scored, limit=len(episodes)))
    turns = read_turns(selfplay, pool.unlabelled(range(ITERATIONS), 0), ITERATIONS)
    read = labels_to_teach(turns, rewards.label_shares, align=True)
    flywheel.teach(rewards.score_groups(read.groups), read, ITERATIONS)
    yield "teacher", [(g.gold, g.taught, g.context, g.consensus) for g in read.groups]
    yield "labels to teach", (read.labels, read.shares, read.weights)
    yield "lessons", [vars(lesson) for lesson in flywheel.lessons.draw(200, 0.2, 0, random.Random(1))]
    flywheel.close()
    yield "openings", openings
    yield "groups", groups
    yield "samples.jsonl", samples
    with closing(FlywheelStore(path)) as store:
        yield (
            "flywheel",
            [(r.labels, r.gold, r.target, r.context, r.reason, r.candidates) for r in store.find(Filter())],
        )
    yield "training_dialogues.json", json.dumps(training_dialogues(corpus, config))


def leaks(config: RunConfig, corpus: Corpus, path: Path) -> set[str]:
    """Names of the parts that the planted label is in."""
    return {name for name, part in parts_of(config, corpus, path) if PLANTED in repr(part)}


def _hidden(prompt: str) -> bool:
    return any(f"{name} goes on" in prompt for name in set(IDS) - shown_ids())


def test_a_planted_label_is_nowhere(tmp_path: Path) -> None:
    config = config_for(write_corpus(tmp_path / "c"))
    parts = dict(parts_of(config, load_run_corpus(config), tmp_path / "flywheel.sqlite"))
    assert {name for name, part in parts.items() if PLANTED in repr(part)} == set()
    assert parts["supervised prompts of hidden dialogues"] == [], "SFT learns from labelled dialogues alone"
    opened = {turns[-1].text.split()[0] for turns, _ in parts["openings"]}
    assert len(opened & (set(IDS) - shown_ids())) > len(IDS) / 4, "and yet hidden dialogues open episodes"
    assert all(parts[name] for name in ("groups", "samples.jsonl", "flywheel")), "there was what to search"


def test_the_oracle_sees_it_in_self_play_and_nowhere_else(tmp_path: Path) -> None:
    config = config_for(write_corpus(tmp_path / "c"), reveal_hidden=True)
    found = leaks(config, load_run_corpus(config), tmp_path / "flywheel.sqlite")
    taught = {"teacher", "labels to teach", "lessons"}
    assert found == {"openings", "groups", "samples.jsonl", "flywheel", *taught}


def test_the_search_would_find_a_label_that_is_not_hidden(tmp_path: Path) -> None:
    """Each part shows the label where the corpus is read as it is, so none of the searches above is blind.

    A teacher has nothing to read there; the oracle's test finds the label in what it teaches.
    """
    root = write_corpus(tmp_path / "c")
    config = config_for(root, labelled_share=1.0)
    everything = {name for name, _ in parts_of(config, load_corpus("jsonl", root), tmp_path / "a.sqlite")}
    found = leaks(config, load_corpus("jsonl", root), tmp_path / "b.sqlite")
    assert everything - found == {"training_dialogues.json", "teacher", "lessons"}


@pytest.mark.parametrize("reveal", [False, True])
def test_weights_and_caps_are_those_of_the_labelled_dialogues(tmp_path: Path, reveal: bool) -> None:
    root = write_corpus(tmp_path / "c")
    corpus = load_run_corpus(config_for(root, reveal_hidden=reveal))
    labelled = [c for c in load_corpus("jsonl", root).split("train") if c.dialogue_id in shown_ids()]
    hidden, alone = (Rewards(REWARD, train, LABEL_SET) for train in (corpus.split("train"), labelled))
    assert (
        hidden.label_shares == alone.label_shares == {"anger": 1 / 3, PLANTED: 0, "joy": 2 / 3, "neutral": 0}
    )
    assert hidden.label_weights == alone.label_weights
    assert TransitionPrior.estimate(corpus.split("train")) == TransitionPrior.estimate(labelled)
    assert (
        Flywheel(
            FlywheelConfig(enabled=False), corpus, hidden, tmp_path / "none", is_writer=False
        )._admission._shares
        == alone.label_shares
    )


def test_a_tokenizer_is_made_without_them(tmp_path: Path) -> None:
    from selfemo.selfplay.tokenizer_texts import tokenizer_texts

    root = write_corpus(tmp_path / "c")
    texts = list(tokenizer_texts(load_run_corpus(config_for(root))))
    labelled = SimpleNamespace(
        labels=LABEL_SET,
        split=lambda name: [
            c for c in load_corpus("jsonl", root).split(name) if c.dialogue_id in shown_ids()
        ],
    )
    assert set(texts) >= set(tokenizer_texts(labelled))
    assert not any(f"showing {PLANTED}" in text for text in texts)
    assert any(_hidden(text) for text in texts), "their texts are known, their labels are not"
