"""Checks corpus, tokenizer and settings of a run together, without building a model.

`selfemo train --dry-run` and every rank of a launch go through this list, so both refuse the same mistakes.
What needs no tokenizer is checked before it: config/checks.py, config/training_corpus.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.config.prompt_settings import PromptSettings
from selfemo.config.schema import ModelConfig
from selfemo.corpora.conversation import Corpus
from selfemo.rollout.api import check_room
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.room import longest_requests
from selfemo.selfplay.sft import SftExamples
from selfemo.selfplay.tokenizer_texts import tokenizer_texts
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.tokens.encoder import ChatEncoder


def checked_prompts(
    tokenizer_dir: Path, settings: PromptSettings, corpus: Corpus
) -> tuple[ChatEncoder, PromptBuilder]:
    """Read a run's tokenizer, and write the prompts that would fail first.

    Raises:
        UserError: the tokenizer cannot be used, or has tokens beyond the model's embedding; its template
            cannot express the prompts, or a thinking that is asked for; a prompt and its answer are longer
            than model.max_length; the training split holds nothing to learn from; the labels' first tokens
            cannot be told apart, and a teacher's probabilities are asked for.
    """
    encoder = ChatEncoder(tokenizer_dir)
    prompts = PromptBuilder(
        encoder,
        corpus.labels,
        settings.corpus.history_turns,
        settings.corpus.max_turn_tokens,
        settings.selfplay.thinking,
        encoder.opens_thinking,
    )
    train = corpus.split("train")
    shown = [*train, *corpus.split(settings.evaluation_split)]
    views = (*settings.selfplay.views, *settings.sft_views)
    check_room(longest_requests(prompts, shown, settings.selfplay, views), settings.max_length)
    check_training_split(settings, corpus, prompts)
    if settings.selfplay.teacher_votes == "probabilities":
        _ = prompts.first_ids  # raises
    return encoder, prompts


def check_training_split(settings: PromptSettings, corpus: Corpus, prompts: PromptBuilder) -> None:
    """Refuse a training split without what the stages draw from it.

    Raises:
        UserError: no opening, no annotated turn or no reply to teach, or no transition between labels.
    """
    train, play = corpus.split("train"), settings.selfplay
    OpeningPool(corpus, play, settings.seed, settings.corpus.history_turns)
    SftExamples(train, prompts, play, settings.seed, settings.sft.expression_share, settings.max_length)
    if play.turns and not TransitionPrior.estimate(train).sets:
        raise UserError(
            f"selfplay.turns is {play.turns}, but the training split holds no two consecutive annotated "
            "turns to draw targets from; set selfplay.turns=0"
        )


@contextmanager
def trained_tokenizer(model: ModelConfig, corpus: Corpus) -> Iterator[Path]:
    """Yield a temporary directory with the tokenizer of the model that the run would initialise.

    Raises:
        UserError: model.vocab_size is too small.
    """
    from selfemo.tokens.training import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(tokenizer_texts(corpus), model.vocab_size)
    with tempfile.TemporaryDirectory(prefix="selfemo-tokenizer-") as directory:
        save_tokenizer(tokenizer, Path(directory), model.max_length)
        yield Path(directory)
