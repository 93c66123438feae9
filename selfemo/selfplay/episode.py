"""Plays self-play episodes on one engine, each at its own pace.

Each turn of an episode has three phases:

    1. recognise   G label sets are sampled for the last turn, in its views; their vote is the consensus.
    2. respond     M replies are sampled for a target emotion set E: the annotation of the opening's next
                   turn if there is one, else a draw from the transition prior given the labels recognised.
    3. score       the recognizer reads each admissible reply greedily, in a fresh context that never mentions
                   E: one deterministic reading per reply, so that a reply's reward has no sampling noise of
                   its own. Replies that failed a gate are not read.

Then the best reply is appended and the roles swap. If no reply of an episode can be read, the episode ends.
Every phase 1 and phase 2 is a group for SELF-GRPO. Sampling seeds derive from (run, iteration, episode, turn,
role, sample): the result does not depend on how episodes are dealt over ranks, nor on which others generate
at the same time, and any sample can be generated again alone. A phase begins once the requests of the one
before have ended (selfplay/steps.py). Prompts, readings, gates and votes take most of this module's time and
are pure functions of values that every rank of an engine has, so `deal` shares them out over these ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_rng, derive_seed
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.process.dealing import Deal, one_by_one
from selfemo.rollout.api import Completion, GenerationRequest, Generator, Session
from selfemo.rollout.sessions import CallByCall
from selfemo.selfplay.consensus import Consensus, vote
from selfemo.selfplay.prompts import DEFAULT_SPEAKER, PromptBuilder, clean_line
from selfemo.selfplay.records import Episode, Gate, Group, Opening, Role, Sample
from selfemo.selfplay.roles import Recognizer, Responder
from selfemo.selfplay.steps import Steps, ask, run, work
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.selfplay.views import view_named, views_of_samples
from selfemo.selfplay.word_evidence import WordEvidence


@dataclass
class _Live:
    """An episode while it is played."""

    opening: Opening
    turns: list[Turn]
    speakers: tuple[str, str]
    """The next speaker, and the one after that."""
    groups: list[Group]
    target: tuple[str, ...] | None = None
    """Emotions that the last generated turn was written for; empty if that turn is real."""


@dataclass(frozen=True)
class _Asked:
    """A turn in one view."""

    turns: Sequence[Turn]
    view: str
    seed: int


@dataclass(frozen=True)
class SelfPlay:
    """Plays the episodes of an iteration with one generator and one set of prompts."""

    generator: Generator
    prompts: PromptBuilder
    score: SmoothedIoU
    transitions: TransitionPrior
    config: SelfPlayConfig
    run_seed: int
    deal: Deal = one_by_one
    words: WordEvidence | None = None
    """Has a say in the teacher's vote by probabilities; None if `config.teacher_words` is 0."""

    def __post_init__(self) -> None:
        """Check that targets can be drawn if turns are to be generated.

        Raises:
            UserError: turns are to be generated, and the training split has no transition.
        """
        if self.config.turns and not self.transitions.sets:
            raise UserError(
                f"selfplay.turns is {self.config.turns}, but the training split holds no two consecutive "
                "annotated turns to draw targets from; set selfplay.turns=0"
            )

    @cached_property
    def recognizer(self) -> Recognizer:
        """The role of phases 1 and 3."""
        return Recognizer(self.prompts, self.config)

    @cached_property
    def responder(self) -> Responder:
        """The role of phase 2."""
        return Responder(self.prompts, self.config)

    def play(
        self, openings: Sequence[Opening], iteration: int, session: Session | None = None
    ) -> list[Episode]:
        """Play one episode per opening, in their order.

        Args:
            session: of the engine; None: the generator's calls, in lock-step, 3 per turn (1 in all if
                `config.turns` is 0).
        """
        episodes = [self._episode(opening, iteration) for opening in openings]
        return run(episodes, session or CallByCall(self.generator), self.deal)

    def _episode(self, opening: Opening, iteration: int) -> Steps[Episode]:
        live = _Live(opening, list(opening.turns), first_speakers(opening), [])
        yield from self._recognise(live, 0, iteration)
        for turn in range(self.config.turns):
            if turn:
                yield from self._recognise(live, turn, iteration)
            goes_on = yield from self._respond(live, turn, iteration)
            if not goes_on:
                break
        return Episode(live.opening, tuple(live.groups), tuple(live.turns))

    def _recognise(self, live: _Live, turn: int, iteration: int) -> Steps[None]:
        names = self.config.views
        asked = [
            _Asked(live.turns, name, view_seed(self.run_seed, iteration, live.opening.index, turn, name))
            for name in names
        ]
        shown = yield from work(self._show, asked)
        views = views_of_samples(names, self.config.recognizer_group_size)
        prompts = [shown[names.index(view)] for view in views]
        requests = self._requests(live, prompts, "recognizer", turn, iteration)
        completions = yield from ask(requests)
        readings = yield from work(self.recognizer.read, completions)
        samples = [
            _sample(request, completion, view, *read)
            for request, completion, view, read in zip(requests, completions, views, readings, strict=True)
        ]
        (consensus,) = yield from work(self.vote, [samples])
        gold = live.turns[-1].labels or None
        self._close(
            live,
            "recognizer",
            turn,
            iteration,
            live.turns[-1].speaker,
            gold,
            live.target,
            samples,
            consensus,
            live.opening.taught if turn == 0 and gold is None else None,
        )

    def _respond(self, live: _Live, turn: int, iteration: int) -> Steps[bool]:
        """Play phases 2 and 3, and append the best reply; False if there is none."""
        target = self._target(live, turn, iteration)
        (prompt,) = yield from work(self._ask, [(live, target)])
        prompts = [prompt] * self.config.responder_group_size
        requests = self._requests(live, prompts, "responder", turn, iteration)
        completions = yield from ask(requests)
        gated = yield from work(self._gate, [(live, completion) for completion in completions])
        readings = yield from self._read_replies(live, gated)
        samples = list(map(_reply, requests, completions, gated, readings))
        (consensus,) = yield from work(self.vote, [samples])
        self._close(live, "responder", turn, iteration, live.speakers[0], None, target, samples, consensus)
        return self._append_best(live, target, samples)

    def _requests(
        self, live: _Live, prompts: Sequence[tuple[int, ...]], role: Role, turn: int, iteration: int
    ) -> list[GenerationRequest]:
        """Request a completion of each prompt, one per sample of the group."""
        player = self.recognizer if role == "recognizer" else self.responder
        return [
            player.request(prompt, sample_seed(self.run_seed, iteration, live.opening.index, turn, role, i))
            for i, prompt in enumerate(prompts)
        ]

    def _show(self, asked: _Asked) -> tuple[int, ...]:
        """Build the recognizer's prompt in one view."""
        return self.prompts.recognize(asked.turns, view_named(asked.view), asked.seed)

    def _gate(self, written: tuple[_Live, Completion]) -> tuple[str, tuple[Gate, ...]]:
        """Decode a responder's completion, and list the gates it fails."""
        live, completion = written
        return self.responder.gate(live.turns, live.speakers[0], completion)

    def vote(self, samples: Sequence[Sample]) -> Consensus:
        """Vote over a group's readings; of a responder's, over those of the replies that were read."""
        read = [(sample.reading, sample.view) for sample in samples if sample.reading is not None]
        others = self.config.consensus == "other_views"
        return vote([reading for reading, _ in read], self.score, [view for _, view in read], others)

    def _ask(self, asked: tuple[_Live, tuple[str, ...]]) -> tuple[int, ...]:
        """Build the responder's prompt for a target."""
        live, target = asked
        return self.prompts.respond(live.turns, live.speakers[0], target)

    def _read_replies(
        self, live: _Live, gated: Sequence[tuple[str, tuple[Gate, ...]]]
    ) -> Steps[list[Reading | None]]:
        """Read every admissible reply (phase 3): the recognizer's greedy answers.

        Args:
            gated: each reply's text, and the gates it failed; None is returned for one that failed any.
        """
        places = [i for i, (_, gates) in enumerate(gated) if not gates]
        dialogues = [[*live.turns, Turn(live.speakers[0], clean_line(gated[i][0]))] for i in places]
        prompts = yield from work(self.prompts.recognize, dialogues)
        completions = yield from ask([self.recognizer.greedy_request(prompt) for prompt in prompts])
        readings = yield from work(self.recognizer.read, completions)
        found: list[Reading | None] = [None] * len(gated)
        for i, (_, reading) in zip(places, readings, strict=True):
            found[i] = reading
        return found

    def _target(self, live: _Live, turn: int, iteration: int) -> tuple[str, ...]:
        following = live.opening.next_turn
        if turn == 0 and following is not None and following.labels and following.speaker == live.speakers[0]:
            return following.labels[:3]
        recognised = live.groups[-1].consensus.labels
        rng = derive_rng(self.run_seed, "target", iteration, live.opening.index, turn)
        return self.transitions.draw(
            recognised[0] if recognised else None, rng, self.config.target_flattening
        )

    def _append_best(self, live: _Live, target: tuple[str, ...], samples: list[Sample]) -> bool:
        best = best_reply(samples, target, self.score)
        if best is None:
            return False
        live.turns.append(Turn(live.speakers[0], clean_line(samples[best].text)))
        live.target = target
        live.speakers = (live.speakers[1], live.speakers[0])
        return True

    def _close(
        self,
        live: _Live,
        role: Role,
        turn: int,
        iteration: int,
        speaker: str,
        gold: tuple[str, ...] | None,
        target: tuple[str, ...] | None,
        samples: list[Sample],
        consensus: Consensus,
        taught: tuple[str, ...] | None = None,
    ) -> None:
        """Add the finished group to its episode."""
        _, max_tokens = group_shape(self.config, role)
        live.groups.append(
            Group(
                role=role,
                iteration=iteration,
                episode=live.opening.index,
                turn=turn,
                source=live.opening.source,
                parent=live.opening.parent,
                context=tuple(live.turns),
                speaker=speaker,
                gold=gold,
                target=target,
                max_tokens=max_tokens,
                temperature=self.config.temperature,
                samples=tuple(samples),
                consensus=consensus,
                taught=taught,
            )
        )


def sample_seed(run_seed: int, iteration: int, episode: int, turn: int, role: Role, sample: int) -> int:
    """Derive the sampling seed of one completion."""
    return derive_seed(run_seed, "rollout", iteration, episode, turn, role, sample)


def view_seed(run_seed: int, iteration: int, episode: int, turn: int, view: str) -> int:
    """Derive the seed of a view's draws for one recognizer group."""
    return derive_seed(run_seed, "view", iteration, episode, turn, view)


def group_shape(config: SelfPlayConfig, role: Role) -> tuple[int, int]:
    """Return (samples per group, token cap) of a role."""
    if role == "recognizer":
        return config.recognizer_group_size, config.max_recognizer_tokens
    return config.responder_group_size, config.max_utterance_tokens


def first_speakers(opening: Opening) -> tuple[str, str]:
    """Choose who replies to the opening's last turn, and who replies to that.

    The first reply is the real next turn's speaker, else the latest other speaker of the opening's turns,
    else anyone else in the dialogue; in a monologue it is "Someone". The second is the last turn's speaker.
    """
    last = opening.turns[-1].speaker
    candidates = [opening.next_turn.speaker] if opening.next_turn else []
    candidates += [turn.speaker for turn in reversed(opening.turns)]
    candidates += opening.speakers
    return next((name for name in candidates if name != last), DEFAULT_SPEAKER), last


def best_reply(samples: Sequence[Sample], target: Sequence[str], score: SmoothedIoU) -> int | None:
    """Return the index of the reply whose reading is closest to its target, the first of equals.

    None if no reply was read in the grammar.
    """
    read = [i for i, sample in enumerate(samples) if isinstance(sample.reading, Answer)]
    values = {
        i: score.of_reading(reading, target) for i in read if (reading := samples[i].reading) is not None
    }
    return max(values, key=lambda i: (values[i], -i), default=None)


def _sample(
    request: GenerationRequest, completion: Completion, view: str, text: str, reading: Reading | None
) -> Sample:
    ids, logprobs = completion.token_ids, completion.logprobs
    return Sample(
        request.prompt_ids, ids, logprobs, request.seed, text, completion.finished, reading, view=view
    )


def _reply(
    request: GenerationRequest,
    completion: Completion,
    gated: tuple[str, tuple[Gate, ...]],
    reading: Reading | None,
) -> Sample:
    text, gates = gated
    ids, logprobs = completion.token_ids, completion.logprobs
    return Sample(request.prompt_ids, ids, logprobs, request.seed, text, completion.finished, reading, gates)
