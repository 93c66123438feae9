"""Runs an evaluation from options to result. Every input is checked before the first model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.dev_split import draw_dev
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.problems import raise_first
from selfemo.corpora.registry import locate_corpus
from selfemo.evaluation.evaluate import Recognizer, Task, compare_models, evaluate_model, smoothed_iou
from selfemo.evaluation.options import EvaluationOptions
from selfemo.evaluation.results import Evaluation
from selfemo.evaluation.turns import evaluation_turns
from selfemo.inference.finished_model import Engines, FinishedModel, find_model


def run_evaluation(
    options: EvaluationOptions, open_engines: Callable[[], Engines], tell: Callable[[str], None]
) -> Evaluation:
    """Evaluate the model, and the one it is compared with.

    Args:
        open_engines: called once, after all input was checked.
        tell: is given a line when each model's turn comes.

    Raises:
        UserError: a model, corpus, split or option that cannot be used.
    """
    options.check()

    def find(path: Path) -> FinishedModel:
        return find_model(path, options.overrides, defaults=options.defaults)

    models = [find(path) for path in (options.model, options.against) if path is not None]
    reader = find(options.recognizer) if options.recognizer else None
    corpus, place = read_corpus_of(options.corpus, models[0])
    conversations = corpus.split(options.split)
    if not conversations:
        valid = sorted({conversation.split for conversation in corpus.conversations})
        raise UserError(f"{place}: has no split {options.split!r}; expected one of {', '.join(valid)}")
    turns = evaluation_turns(conversations, options.limit)
    for found in [*models, *([reader] if reader else [])]:
        found.check_weights()
        if found is reader or options.scoring == "generate" or reader is not None:
            found.check_engine()
    task = Task(
        turns,
        corpus.labels,
        smoothed_iou(models[0], corpus.labels),
        options.scoring,
        options.votes,
        options.seed,
        options.views,
    )
    engines = open_engines()
    recognizer = Recognizer(reader, engines.generator(reader)) if reader else None
    generates = options.scoring == "generate" or recognizer is not None
    reports = []
    for model in models:
        tell(f"{model.path}: {len(turns)} turns of {corpus.name} {options.split}, scoring: {options.scoring}")
        reports.append(
            evaluate_model(model, engines.generator(model) if generates else None, task, recognizer)
        )
    differences = compare_models(reports[0], reports[1], task) if len(reports) == 2 else ()
    return Evaluation(
        corpus.name, str(place), options.split, options.limit, task, tuple(reports), differences
    )


def read_corpus_of(named: str, model: FinishedModel) -> tuple[Corpus, Path]:
    """Read the corpus that `corpus_of` returns; that of a run has the dev split that the run drew."""
    fmt, place = corpus_of(named, model)
    corpus = fmt.read(place, raise_first)
    if not named:
        corpus = draw_dev(corpus, model.config.corpus.dev_share, model.config.seed)
    return corpus, place


def corpus_of(named: str, model: FinishedModel) -> tuple[CorpusFormat, Path]:
    """Return the corpus that a command line names, else that of the model's run; UserError if there is
    none.
    """
    if named:
        return locate_corpus(named)
    configured = model.config.corpus
    return locate_corpus(configured.path or configured.name, configured.name)
