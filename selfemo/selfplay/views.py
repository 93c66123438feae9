"""Shows the same turn to the recognizer in different ways (views), so that its answers err in different ways.

A view is a named function from the contents of the plain prompt, and a random source, to the contents of its
own prompt. It is pure: the same seed gives the same prompt. `VIEWS` is the registry; `selfplay.views` names
those of a run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from selfemo.common.errors import UserError, nearest
from selfemo.common.printable import quote
from selfemo.config.schema import SelfPlayConfig, SftConfig
from selfemo.corpora.conversation import Turn
from selfemo.corpora.words import pieces

INSTRUCTION = "Which of {labels} does the last line show? Name one to three, the main one first."
REPHRASED = (
    "How does the speaker of the last line feel? Answer with one to three of {labels}, the strongest first."
)
WORDS_PER_DROPPED_WORD = 10


@dataclass(frozen=True)
class Shown:
    """The contents of a recognizer's prompt."""

    turns: tuple[Turn, ...]
    """Earlier turns, then the turn to read; the texts are cleaned and cut already."""
    labels: tuple[str, ...]
    """The label list, in the order in which it is shown."""
    instruction: str = INSTRUCTION
    """The prompt's first line; the label list stands in for `{labels}`."""


@dataclass(frozen=True)
class View:
    """One way to show a turn."""

    name: str
    """Its name in the configuration and in records; no other view has it."""
    show: Callable[[Shown, random.Random], Shown]
    """Changes the contents of the plain prompt. Pure: draws come from the random source alone."""


def plain(shown: Shown, rng: random.Random) -> Shown:
    """Keep the prompt as it is."""
    return shown


def short(shown: Shown, rng: random.Random) -> Shown:
    """Keep the nearer half of the earlier turns, rounded down."""
    return replace(shown, turns=shown.turns[-1 - (len(shown.turns) - 1) // 2 :])


def shuffled_labels(shown: Shown, rng: random.Random) -> Shown:
    """Put the label list in a random order."""
    return replace(shown, labels=tuple(rng.sample(shown.labels, len(shown.labels))))


def anonymous(shown: Shown, rng: random.Random) -> Shown:
    """Name speakers A, B, C in order of appearance (A2 follows Z); names inside the lines stay."""
    letters: dict[str, str] = {}
    for turn in shown.turns:
        rounds, place = divmod(len(letters), 26)
        letters.setdefault(turn.speaker, chr(ord("A") + place) + (str(rounds + 1) if rounds else ""))
    return replace(shown, turns=tuple(replace(turn, speaker=letters[turn.speaker]) for turn in shown.turns))


def dropped(shown: Shown, rng: random.Random) -> Shown:
    """Drop a tenth of the earlier turns' words, rounded up; the turn to read keeps every word."""
    *earlier, last = shown.turns
    lines = [pieces(turn.text) for turn in earlier]
    places = [(i, j) for i, line in enumerate(lines) for j in range(len(line))]
    gone = set(rng.sample(places, -(-len(places) // WORDS_PER_DROPPED_WORD)))
    kept = [[w for j, w in enumerate(line) if (i, j) not in gone] for i, line in enumerate(lines)]
    texts = ["".join(line).strip() for line in kept]
    thinned = (replace(turn, text=text) for turn, text in zip(earlier, texts, strict=True))
    return replace(shown, turns=(*thinned, last))


def rephrased(shown: Shown, rng: random.Random) -> Shown:
    """Phrase the instruction differently."""
    return replace(shown, instruction=REPHRASED)


PLAIN = View("plain", plain)
VIEWS = (
    PLAIN,
    View("short", short),
    View("labels", shuffled_labels),
    View("anonymous", anonymous),
    View("dropped", dropped),
    View("rephrased", rephrased),
)
"""All views that a configuration can name. Add one at the end (docs/extending.md)."""


def view_names() -> tuple[str, ...]:
    """List the names of all views, plain first."""
    return tuple(view.name for view in VIEWS)


def view_named(name: str) -> View:
    """Find a view by its name.

    Raises:
        KeyError: no view has it, which the checks before a run rule out.
    """
    return {view.name: view for view in VIEWS}[name]


def views_of_samples(views: Sequence[str], size: int) -> list[str]:
    """Deal a group's `size` samples over views, in shares that differ by one at most.

    Samples of one view are neighbours, since packing shares a prompt among neighbours alone.
    """
    return [views[i * len(views) // size] for i in range(size)]


def unknown_views(play: SelfPlayConfig, sft: SftConfig) -> Iterator[str]:
    """Yield a sentence for every view of a configuration that the registry does not hold."""
    known = view_names()
    for field, named in (("selfplay.views", play.views), ("sft.views", sft.views or ())):
        for name in named:
            if name not in known:
                yield f"{field} names {quote(name)}: expected of {', '.join(known)}{nearest(name, known)}"


def parse_views(text: str, option: str) -> tuple[str, ...]:
    """Parse the views that a command line names: how many of `VIEWS`, or names with commas; "" for none.

    Raises:
        UserError: fewer than two, more than there are, an unknown or a repeated name; begins with `option`.
    """
    known = view_names()
    if not text:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    if text.isdecimal():
        if len(text) > 9 or not 2 <= int(text) <= len(known):
            raise UserError(
                f"{option} {text[:9]}: expected 2 to {len(known)} views, or names: {', '.join(known)}"
            )
        return known[: int(text)]
    for name, count in Counter(names).items():
        if name not in known:
            raise UserError(f"{option} {quote(name)}: expected of {', '.join(known)}{nearest(name, known)}")
        if count > 1:
            raise UserError(f"{option} names {name} {count} times: name each view once")
    if len(names) < 2:
        raise UserError(f"{option} {text}: one view has nobody to vote with; name two or more")
    return names
