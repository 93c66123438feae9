"""Test vLLM with requests that are added while others generate: results are those of one call, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.distributed as dist

from selfemo.config.schema import RolloutConfig
from selfemo.emotions.affinity import identity_affinity
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.stop import StopSignals
from selfemo.rollout.api import Completion, GenerationRequest, Session
from selfemo.rollout.sessions import complete
from selfemo.rollout.vllm_engine import RolloutEngine
from selfemo.run.episodes import EpisodesByEngine
from selfemo.run.stoppable import StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.records import Episode
from tests.helpers.distributed import DistributedRunner
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator
from tests.rollout import test_vllm_engine
from tests.rollout.test_vllm_engine import MAX_LENGTH, STATE, _engine, _prompt, _weights, model_dir
from tests.selfplay.test_episode import CONFIG, OPENING, TRANSITIONS

__all__ = ["model_dir"]
EPISODES = 7
PLAY = replace(CONFIG, turns=3)


def _requests() -> list[GenerationRequest]:
    """Make requests of 1 to 23 tokens, some greedy, whose prompts share prefixes of whole blocks."""
    return [
        GenerationRequest(_prompt(i % 5, 150)[: 90 + 7 * (i % 9)], i, 1 + i * 7 % 23, i % 4 / 3)
        for i in range(40)
    ]


def _added_meanwhile(model_dir: str) -> tuple[list[Completion], list[Completion], list[Completion], int]:
    """Answer requests in one call; three at a time, whenever one ends; and in one call again."""
    engine, requests, found = _engine(model_dir), _requests(), {}
    engine.receive_checkpoint_tensors(_weights(1), 1)
    together = engine.generate(requests)
    out_of_order = 0
    with engine.session() as session:
        session.add(requests[:4])
        for first in range(4, 40, 3):
            session.add(requests[first : first + 3])
            for number, completion in session.advance():
                out_of_order += number < max(found, default=-1)
                found[number] = completion
        while ended := session.advance():
            found.update(ended)
    with engine.session() as session:  # left with requests in progress
        session.add(requests)
        session.advance()
    assert engine.generate([]) == []
    return together, [found[number] for number in range(40)], engine.generate(requests), out_of_order


def test_requests_added_while_others_generate_are_answered_as_in_one_call(distributed, model_dir):
    for together, meanwhile, again, out_of_order in distributed(
        2, _added_meanwhile, model_dir, timeout_s=240
    ):
        assert meanwhile == together
        assert again == together, "a session that was left leaves nothing behind"
        assert out_of_order > 5
        assert len({len(completion.token_ids) for completion in together}) > 10


@dataclass
class _Speaking:
    """An engine whose completions, of many lengths, are read as answers and replies that depend on them."""

    engine: RolloutEngine
    max_length: int = 10_000
    added_meanwhile: int = 0
    """Times that requests were added while others generated."""

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self.engine.session() as session:
            yield _SpeakingSession(session, self)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        with self.session() as session:
            return complete(session, requests)


@dataclass
class _SpeakingSession:
    session: Session
    owner: _Speaking
    requests: list[GenerationRequest] = field(default_factory=list)
    ended: int = 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        self.owner.added_meanwhile += self.ended < len(self.requests)
        self.requests += requests
        self.session.add(
            [
                replace(r, prompt_ids=r.prompt_ids[-200:], max_tokens=1 + sum(r.prompt_ids, r.seed) % 17)
                for r in requests
            ]
        )

    def advance(self) -> list[tuple[int, Completion]]:
        ended = self.session.advance()
        self.ended += len(ended)
        return [(number, self._said(number, completion)) for number, completion in ended]

    def _said(self, number: int, completion: Completion) -> Completion:
        drawn = sum(completion.token_ids)
        replies = self.requests[number].max_tokens == PLAY.max_utterance_tokens
        leaks = drawn % 3 == 0
        text = f"{'joy' if leaks else 'tone'} {drawn} it is" if replies else LABELS[drawn % len(LABELS)]
        return replace(completion, token_ids=CharEncoder().encode_completion(text), finished=True)


def _engine_over(model_dir: str, ranks: int) -> RolloutEngine:
    if ranks > 1 and "engine" not in STATE:
        from transformers import AutoModelForCausalLM

        from selfemo.megatron.device import select_device

        select_device()
        config = RolloutConfig(kv_cache_bytes=32 << 20, tensor_parallel=ranks)
        STATE["engine"] = RolloutEngine(model_dir, config, MAX_LENGTH, (test_vllm_engine.STOP_ID,), "cpu")
        STATE["model"] = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return _engine(model_dir)


def _played(model_dir: str, ranks: int, lock_step: bool) -> tuple[list[Episode], int]:
    engine = _engine_over(model_dir, ranks)
    engine.receive_checkpoint_tensors(_weights(2), 2)
    score = SmoothedIoU(identity_affinity(LABELS), 0.05)
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    play = SelfPlay(ScriptedGenerator(lambda *_: ""), prompts, score, TRANSITIONS, PLAY, run_seed=11)
    speaking, stop = _Speaking(engine), StopRequest(torch.device("cpu"), StopSignals())
    by_engine = EpisodesByEngine(play, speaking, EngineRanks.join(ranks), stop, lock_step)  # type: ignore[arg-type]
    found = by_engine.play([replace(OPENING, index=i) for i in range(EPISODES)], 4)
    assert dist.get_world_size() == 2
    return found, speaking.added_meanwhile


@pytest.fixture(scope="module")
def engine_of_two() -> Iterator[DistributedRunner]:
    """Give processes of their own: vLLM's parallel state is made once per process."""
    runner = DistributedRunner()
    yield runner
    runner.close()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_episodes_at_their_own_pace_are_those_of_lock_step(distributed, engine_of_two, model_dir, ranks):
    over = distributed if ranks == 1 else engine_of_two
    in_lock_step = over(2, _played, model_dir, ranks, True, timeout_s=300)
    at_own_pace = over(2, _played, model_dir, ranks, False, timeout_s=300)
    assert [episodes for episodes, _ in at_own_pace] == [episodes for episodes, _ in in_lock_step]
    assert [count for _, count in in_lock_step] == [0, 0]
    assert all(count > 5 for _, count in at_own_pace)
    if ranks == 2:
        assert at_own_pace[0] == at_own_pace[1]
    groups = [len(episode.groups) for episode in in_lock_step[0][0]]
    assert max(groups) == 2 * PLAY.turns, "several turns"
