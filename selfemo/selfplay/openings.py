"""Draws the openings of episodes: prefixes of real dialogues, and dialogues that the flywheel kept.

A fixed number of an iteration's openings is always real and walks through every annotated turn of the
training split that is free of dev and test texts (each once per epoch, unless rare labels are favoured), and
through every such turn of the dialogues without labels, where the group's consensus replaces the annotation.
The other openings continue kept flywheel records. While the flywheel holds too few, more real prefixes take
their place, from a schedule of their own, so that the first walk stays complete.

A turn without labels in a labelled dialogue opens nothing: its annotators disagreed, or chose an emotion
outside the set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_rng
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.overlap import TRAIN, HeldOutTexts, held_out_texts
from selfemo.selfplay.records import Opening
from selfemo.selfplay.schedule import MixedSchedule

MAX_SPEAKERS = 8


Place = tuple[str, tuple[str, ...]]
"""Conversation key and texts of a prefix: the turn that ends it, as records know it."""


def place_of(source: str, turns: Sequence[Turn]) -> Place:
    """Name the last turn of a real dialogue's prefix."""
    return source, tuple(turn.text for turn in turns)


@dataclass(frozen=True)
class KeptDialogue:
    """A kept flywheel record, as an opening needs it."""

    record_id: int
    source: str
    """Conversation key of the real dialogue that it descends from."""
    turns: tuple[Turn, ...] = field(repr=False)
    """The kept turn is the last. Its labels are gold if the record's are trusted, else empty."""
    speakers: tuple[str, ...] = ()


def opening_turns(conversation: Conversation) -> list[int]:
    """List the turns that may open an episode: those with labels, or all of a dialogue without any."""
    is_labelled = conversation.is_labelled
    return [i for i, turn in enumerate(conversation.turns) if turn.labels or not is_labelled]


class OpeningPool:
    """Draws openings from the training split and the flywheel."""

    def __init__(self, corpus: Corpus, config: SelfPlayConfig, run_seed: int, history_turns: int) -> None:
        """Prepare the schedules.

        Args:
            corpus: openings come from its training split. A prefix is left out if its last turn, or the turn
                that follows, equals a dev or test text or one that the corpus bars (a long one, with
                config.short_repeats), or if it shows a long one. Dialogues that it reveals carry their labels
                in an opening; which turns are drawn does not depend on that.
            history_turns: earlier turns that a prompt shows; an opening carries no more than a prompt can
                use.

        Raises:
            UserError: no annotated turn is left to start from, or none without labels although some are asked
            for.
        """
        self._config = config
        self._run_seed = run_seed
        self._keep_turns = history_turns + 1
        held_out = HeldOutTexts(held_out_texts(corpus))
        places = [
            (c, i) for c in corpus.split(TRAIN) for i in opening_turns(c) if not self._barred(c, i, held_out)
        ]
        labelled = [(c, i) for c, i in places if c.is_labelled]
        unlabelled = [(c, i) for c, i in places if not c.is_labelled]
        share = config.unlabelled_share
        if not labelled and share != 1:
            raise UserError(
                "corpus: the training split holds no annotated turn free of dev and test texts; "
                "check its label column and splits"
            )
        if share and not unlabelled:
            raise UserError(
                f"selfplay.unlabelled_share={share}, but no dialogue without labels has a turn free of dev "
                "and test texts; lower corpus.labelled_share, or name more in corpus.unlabelled"
            )
        if share is None:
            share = len(unlabelled) / len(places)
        self._places, self._labelled = labelled + unlabelled, len(labelled)
        if config.teacher != "policy" and not unlabelled:
            raise UserError(
                f"selfplay.teacher={config.teacher}, but no dialogue without labels has a turn to read; "
                "lower corpus.labelled_share, name more in corpus.unlabelled, or set selfplay.teacher=policy"
            )
        self._revealed = {c.key: c for c in corpus.revealed}
        labels = tuple(c.turns[i].labels[0] for c, i in labelled)
        # A purpose is part of every draw: "seeds" is the older name of openings, a new one would draw others.
        self._walk, self._spare = (
            MixedSchedule.of(labels, len(unlabelled), share, config.seed_label_balance, run_seed, purpose)
            for purpose in ("seeds", "spare seeds")
        )

    def unlabelled(self, iterations: range, limit: int) -> list[Opening]:
        """List the turns without labels, for a teacher to read.

        The turns that openings walk to in these iterations come first, the others in a random order.

        Args:
            limit: list no more than this; 0 for all.
        """
        always_real = self._always_real
        walked = self._walk.take(iterations.start * always_real, len(iterations) * always_real)
        others = list(range(self._labelled, len(self._places)))
        derive_rng(self._run_seed, "teacher", iterations.start).shuffle(others)
        items = dict.fromkeys(item for item in [*walked, *others] if item >= self._labelled)
        first = self._config.seeds_per_iteration  # episodes of the iteration have the numbers before
        return [self._real(first + i, item) for i, item in enumerate(list(items)[: limit or None])]

    def draw(
        self,
        iteration: int,
        kept: Sequence[KeptDialogue] = (),
        taught: Mapping[Place, tuple[str, ...]] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Opening]:
        """Draw openings of one iteration, real ones first. A pure function of its arguments.

        Args:
            iteration: from 0.
            kept: kept dialogues of the flywheel, in a fixed order; at most 1 - real_seed_share of the
                openings come from them.
            taught: the teacher's labels of real turns.
            numbers: which ones, without gaps; None for all.
        """
        wanted = range(self._config.seeds_per_iteration)
        if numbers is not None:
            wanted = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
        always_real = self._always_real
        open_places = self._config.seeds_per_iteration - always_real
        count = min(open_places, len(kept))
        first_spare, first_kept = always_real, always_real + open_places - count
        walked = range(wanted.start, min(wanted.stop, first_spare))
        spare = range(max(wanted.start, first_spare), min(wanted.stop, first_kept))
        items = self._walk.take(iteration * always_real + walked.start, len(walked))
        items += self._spare.take(iteration * open_places + spare.start - first_spare, len(spare))
        openings = [self._real(index, item) for index, item in enumerate(items, wanted.start)]
        continued = range(max(wanted.start, first_kept), wanted.stop)
        if continued:  # not on most of many ranks, and the sample takes milliseconds
            chosen = derive_rng(self._run_seed, "kept seeds", iteration).sample(range(len(kept)), count)
            openings += [self._continued(index, kept[chosen[index - first_kept]]) for index in continued]
        if taught:  # a kept dialogue may end in a real turn as well
            openings = [replace(o, taught=taught.get(place_of(o.source, o.turns))) for o in openings]
        return openings

    @property
    def _always_real(self) -> int:
        """Openings of an iteration that are real in any case."""
        return math.ceil(self._config.real_seed_share * self._config.seeds_per_iteration)

    def _barred(self, conversation: Conversation, last: int, held_out: HeldOutTexts) -> bool:
        first, end = max(0, last + 1 - self._keep_turns), last + 2
        if self._config.short_repeats:
            return any(held_out.matches(turn.text) for turn in conversation.turns[first:end])
        *context, read = conversation.turns[first : last + 1]
        return held_out.bars(read.text, context) or any(
            held_out.bars(turn.text) for turn in conversation.turns[last + 1 : end]
        )

    def _real(self, index: int, item: int) -> Opening:
        conversation, last = self._places[item]
        conversation = self._revealed.get(conversation.key, conversation)
        turns = conversation.turns[max(0, last + 1 - self._keep_turns) : last + 1]
        following = conversation.turns[last + 1] if last + 1 < len(conversation.turns) else None
        names = tuple(dict.fromkeys(turn.speaker for turn in conversation.turns))
        return Opening(index, conversation.key, turns, following, speakers=names[:MAX_SPEAKERS])

    def _continued(self, index: int, dialogue: KeptDialogue) -> Opening:
        turns = dialogue.turns[-self._keep_turns :]
        return Opening(
            index,
            dialogue.source,
            turns,
            parent=dialogue.record_id,
            speakers=dialogue.speakers[:MAX_SPEAKERS],
        )
