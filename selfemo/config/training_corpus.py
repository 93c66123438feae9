"""Reads the corpus that a configuration trains on, with the labels that the run may see.

Preflight and every rank read it here, so both refuse the same mistakes.
"""

from __future__ import annotations

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.dev_split import check_evaluated
from selfemo.corpora.labelled import hide_labels, label_counts
from selfemo.corpora.problems import ProblemSink, raise_first
from selfemo.corpora.registry import load_training_corpus
from selfemo.corpora.unlabelled import add_unlabelled
from selfemo.emotions.affinity import build_affinity


def load_run_corpus(config: RunConfig, report: ProblemSink = raise_first) -> Corpus:
    """Read and check the configured corpus. Labels are hidden here, before a run is built from it.

    Args:
        report: sink for what is wrong or odd in the corpus's rows.

    Raises:
        UserError: a corpus is unknown or malformed, no labelled turn is left to learn from or to score the
            run on, one of its labels has no place in reward.affinity, or openings from dialogues without
            labels are asked for and there are none.
    """
    settings = config.corpus
    corpus = load_training_corpus(
        settings.name, settings.path, settings.hold_out, report, settings.dev_share, config.seed
    )
    corpus = hide_labels(corpus, settings.labelled_share, config.seed, settings.reveal_hidden)
    corpus = add_unlabelled(corpus, settings.unlabelled)
    counts = label_counts(corpus)
    if not counts.labelled_turns:
        raise UserError(
            f"corpus {corpus.name}: the training split holds no labelled turn to learn from: check its labels"
        )
    check_evaluated(corpus, config.evaluation.split)
    build_affinity(config.reward.affinity, corpus.labels)
    if config.selfplay.teacher != "policy" and not counts.unlabelled_turns:
        raise UserError(
            f"selfplay.teacher={config.selfplay.teacher}, but no dialogue without labels is there to read: "
            "lower corpus.labelled_share, name some in corpus.unlabelled, or set selfplay.teacher=policy"
        )
    if config.selfplay.unlabelled_share and not counts.unlabelled_turns:
        raise UserError(
            f"selfplay.unlabelled_share={config.selfplay.unlabelled_share}, but every training dialogue of "
            f"{corpus.name} has labels: set corpus.labelled_share below 1, or corpus.unlabelled"
        )
    return corpus
