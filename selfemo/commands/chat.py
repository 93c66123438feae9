"""Talk with a trained model (`selfemo chat`): it shows the emotions it reads in you, and answers in
an emotion.

A turn is a turn of self-play with you as one speaker. The recognizer samples answers for your line,
and their vote is its reading. The responder samples replies for the target emotion. The recognizer
reads every admissible reply without knowing the target, and the reply that is read closest to it is
said. The target is the emotion you chose, or else the model's reading of your line.

Your input is data: like every reply, it goes through the encoder that keeps chat-template markers
plain text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_seed
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import SEPARATOR, Answer, FormatFailure, Reading, parse_answer
from selfemo.emotions.labels import NEUTRAL, check_label_set, check_labels
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.inference.finished_model import FinishedModel, find_model
from selfemo.process.plain_console import plain_console
from selfemo.rollout.api import Generator
from selfemo.selfplay.consensus import Consensus, vote
from selfemo.selfplay.gates import Gate
from selfemo.selfplay.prompts import PromptBuilder, clean_line, clean_speaker
from selfemo.selfplay.roles import Recognizer, Responder
from selfemo.selfplay.views import PLAIN, parse_views, view_named, views_of_samples

HELP = "/emotion joy: answer in joy;  /emotion auto: mirror what is read in you;  /quit: end"
AUTO = "auto"


@dataclass(frozen=True)
class Reply:
    """A reply of the model, with its aim and its reading."""

    text: str
    target: tuple[str, ...]
    gates: tuple[Gate, ...]
    """Gates that the reply failed. Not empty only if every candidate failed one."""
    reading: Reading | None
    """The recognizer's reading of the reply; None if a gate failed."""


@dataclass(frozen=True)
class Heard:
    """What the model reads in you."""

    views: tuple[str, ...]
    consensus: Consensus
    """The vote over all views."""
    first: Consensus
    """The vote of the first view alone."""


class Dialogue:
    """A conversation in progress."""

    def __init__(
        self,
        generator: Generator,
        prompts: PromptBuilder,
        config: SelfPlayConfig,
        score: SmoothedIoU,
        you: str,
        speaker: str,
        seed: int,
        views: tuple[str, ...] = (PLAIN.name,),
    ) -> None:
        """Start a conversation between `you` and `speaker`, whose names must differ.

        Args:
            views: the views in which your lines are read.
        """
        self._generator, self._prompts, self._config, self._score = generator, prompts, config, score
        self._recognizer, self._responder = Recognizer(prompts, config), Responder(prompts, config)
        self._you, self._speaker, self._seed = you, speaker, seed
        self._views = views
        self._turns: list[Turn] = []

    def hear(self, text: str) -> Heard:
        """Add your line and read it by the vote of `recognizer_group_size` samples, dealt over the views."""
        self._turns.append(Turn(self._you, text))
        prompts = {
            view: self._prompts.recognize(
                self._turns, view_named(view), self._sampling_seed(f"view {view}", 0)
            )
            for view in self._views
        }
        views = views_of_samples(self._views, self._config.recognizer_group_size)
        requests = [
            self._recognizer.request(prompts[view], self._sampling_seed("read", i))
            for i, view in enumerate(views)
        ]
        readings = self._recognizer.read_all(self._generator, requests)
        first = [reading for reading, view in zip(readings, views, strict=True) if view == self._views[0]]
        return Heard(self._views, vote(readings, self._score, views), vote(first, self._score))

    def answer(self, target: tuple[str, ...]) -> Reply:
        """Sample `responder_group_size` replies to the last line, add the best one and return it."""
        prompt, size = (
            self._prompts.respond(self._turns, self._speaker, target),
            self._config.responder_group_size,
        )
        requests = [self._responder.request(prompt, self._sampling_seed("reply", i)) for i in range(size)]
        candidates = []
        for completion in self._generator.generate(requests):
            text, gates = self._responder.gate(self._turns, self._speaker, completion)
            candidates.append((clean_line(text), gates))
        reply = self._closest([text for text, gates in candidates if not gates], target)
        if reply is None:
            text, gates = candidates[0]
            reply = Reply(text, target, gates, None)
        self._turns.append(Turn(self._speaker, reply.text))
        return reply

    def _closest(self, texts: Sequence[str], target: tuple[str, ...]) -> Reply | None:
        """Choose the text that is read closest to the target, the first of equals."""
        if not texts:
            return None
        dialogues = [[*self._turns, Turn(self._speaker, text)] for text in texts]
        readings = self._recognizer.read_last_turns(self._generator, dialogues)
        scores = [self._score.of_reading(reading, target) for reading in readings]
        best = scores.index(max(scores))
        return Reply(texts[best], target, (), readings[best])

    def _sampling_seed(self, purpose: str, sample: int) -> int:
        return derive_seed(self._seed, "chat", len(self._turns), purpose, sample)


def chat(
    model: Annotated[Path, typer.Option(help="Hugging Face directory, such as runs/demo/model.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, such as selfplay.temperature=0.7.")
    ] = None,
    emotion: Annotated[
        str, typer.Option(help="Answer in this emotion (or up to three: joy,surprise); auto mirrors yours.")
    ] = AUTO,
    speaker: Annotated[str, typer.Option(help="The model's name in the dialogue.")] = "Sam",
    you: Annotated[str, typer.Option(help="Your name in the dialogue.")] = "Alex",
    labels: Annotated[
        str, typer.Option(help="Label set, separated by commas; by default that of --corpus.")
    ] = "",
    corpus: Annotated[
        str, typer.Option(help="Corpus whose label set is used; by default the one of the model's run.")
    ] = "",
    views: Annotated[
        str, typer.Option(help="Read you in several views that vote: how many, or their names with commas.")
    ] = "",
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Ignore the settings of the run around the model.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 1,
) -> None:
    """Talk with a finished model: it shows what it reads in you and answers in an emotion. Reads a
    pipe too."""
    from selfemo.evaluation.evaluate import prompts_of, smoothed_iou
    from selfemo.inference.engines import StandaloneEngines

    names = clean_speaker(you), clean_speaker(speaker)
    if names[0].lower() == names[1].lower():
        raise UserError(
            f"--you and --speaker are both {names[0]!r}: expected two names, "
            "since prompts tell the two sides apart by them"
        )
    if sys.stdin is None:  # closed by the shell: chat <&-
        raise UserError("standard input is closed: chat reads lines from a terminal or a pipe")
    shown_in = parse_views(views, "--views") or (PLAIN.name,)
    found = find_model(model, overrides or [], defaults=defaults)
    if len(shown_in) > found.config.selfplay.recognizer_group_size:
        raise UserError(
            f"--views {views}: {len(shown_in)} views, more than selfplay.recognizer_group_size="
            f"{found.config.selfplay.recognizer_group_size} samples: name fewer, or raise the size"
        )
    label_set = _label_set(labels, corpus, found)
    target = None if emotion == AUTO else parse_target(emotion, label_set, "--emotion")
    prompts = prompts_of(found, label_set)
    console = plain_console(soft_wrap=True)
    console.print(
        f"{model}, settings from {found.settings_from}; emotions: {SEPARATOR.join(label_set)}", style="dim"
    )
    console.print(f"{names[1]} answers in {_rule(target)}.  {HELP}", style="dim")
    generator = StandaloneEngines().generator(found)
    dialogue = Dialogue(
        generator, prompts, found.config.selfplay, smoothed_iou(found, label_set), *names, seed, shown_in
    )
    try:
        converse(dialogue, _lines(names[0]), label_set, target, names[1], console)
    except KeyboardInterrupt:
        console.print()


def converse(
    dialogue: Dialogue,
    lines: Iterator[str],
    labels: tuple[str, ...],
    target: tuple[str, ...] | None,
    name: str,
    console: Console,
) -> None:
    """Answer line after line until /quit or the end of input. A mistyped command is reported and
    changes nothing."""
    for line in lines:
        text = clean_line(line)
        if text == "/quit":
            return
        if text.startswith("/"):
            try:
                target = _command(text, labels, target, console)
            except UserError as error:
                console.print(str(error), style="yellow")
        elif text:
            heard = dialogue.hear(text)
            console.print(f"  [{_votes(heard)}]", style="cyan")
            reply = dialogue.answer(target or heard.consensus.labels or (fallback_emotion(labels),))
            console.print(f"{name}: {reply.text}", style="bold")
            console.print(f"  [{_outcome(reply)}]", style="cyan")


def parse_target(text: str, labels: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Parse target emotions as typed: "joy", or "joy, surprise".

    Raises:
        UserError: an unknown label, with the nearest known one; a repeated label, or more than
            three.
    """
    parts = [part.strip().lower() for part in text.split(",")]
    check_labels(parts, labels, where)
    answer = parse_answer(SEPARATOR.join(parts), labels)
    if isinstance(answer, FormatFailure):
        raise UserError(f"{where} {text!r}: {answer.reason}; expected one to three distinct labels")
    return answer.labels


def fallback_emotion(labels: tuple[str, ...]) -> str:
    """Choose the emotion to answer in if nothing could be read: neutral if the set has it."""
    return NEUTRAL if NEUTRAL in labels else labels[0]


def _command(
    text: str, labels: tuple[str, ...], target: tuple[str, ...] | None, console: Console
) -> tuple[str, ...] | None:
    word, _, rest = text.partition(" ")
    if word != "/emotion" or not rest:
        console.print(HELP, style="dim")
        return target
    chosen = None if rest == AUTO else parse_target(rest, labels, "/emotion")
    console.print(f"  [now answering in {_rule(chosen)}]", style="dim")
    return chosen


def _lines(name: str) -> Iterator[str]:
    """Yield the lines you type, or a pipe's lines, which are echoed so that the output reads as a dialogue.

    Bytes that are not text become U+FFFD.
    """
    if sys.stdin.isatty():
        import readline

        readline.set_auto_history(True)  # importing it gives input() line editing
        while True:
            try:
                yield input(f"{name}: ")
            except EOFError:
                return
    for raw in _raw_lines():
        line = clean_line(raw.decode(errors="replace"))
        print(f"{name}: {line}", flush=True)
        yield line


def _raw_lines() -> Iterator[bytes]:
    try:
        yield from sys.stdin.buffer
    except OSError as error:  # open for writing alone, or a terminal that has gone
        raise UserError(f"standard input cannot be read ({error}): chat reads a terminal or a pipe") from None


def _label_set(labels: str, corpus: str, model: FinishedModel) -> tuple[str, ...]:
    if labels:
        named = tuple(sorted(part.strip().lower() for part in labels.split(",")))
        check_label_set(named)
        return named
    from selfemo.corpora.problems import raise_first
    from selfemo.evaluation.run import corpus_of

    fmt, place = corpus_of(corpus, model)
    return fmt.read(place, raise_first).labels


def _rule(target: tuple[str, ...] | None) -> str:
    return "the emotion it reads in you" if target is None else SEPARATOR.join(target)


def _votes(heard: Heard) -> str:
    found = heard.consensus
    if not found.labels:
        return "reads nothing: no sampled answer was in the grammar"
    shares = SEPARATOR.join(f"{label} {share:.0%}" for label, share in found.shares)
    told = f"reads {SEPARATOR.join(found.labels)} in you ({shares} of {found.answers} answers"
    if len(heard.views) == 1:
        return f"{told})"
    alone = SEPARATOR.join(heard.first.labels) or "nothing"
    return f"{told} over {len(heard.views)} views; {heard.views[0]} alone: {alone})"


def _outcome(reply: Reply) -> str:
    aim = f"meant as {SEPARATOR.join(reply.target)}"
    if reply.gates:
        return f"{aim}; no sampled reply passed the gates, this one failed: {', '.join(reply.gates)}"
    reading = (
        SEPARATOR.join(reply.reading.labels)
        if isinstance(reply.reading, Answer)
        else "nothing in the grammar"
    )
    return f"{aim}, read back as {reading}"
