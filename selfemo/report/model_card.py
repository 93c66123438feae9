"""Writes the model card: README.md of a run's exported model, in the form that the Hugging Face Hub shows.

It says what the model was trained on, how well each stage reads emotions, how to ask it, and what voting over
several views brings (vote_card.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Turn
from selfemo.corpora.labelled import LabelCounts
from selfemo.emotions.answer import format_answer
from selfemo.records.reading import Json
from selfemo.report.headlines import Z_95
from selfemo.report.vote_card import METRICS, table, vote_part
from selfemo.selfplay.prompts import recognizer_text

STAGES = {"majority": "majority class", "start": "start", "sft": "SFT", "final": "after self-play"}
"""Names of what is compared, in a table's order."""
EXAMPLE = (Turn("Ann", "I lost my keys again."), Turn("Ben", "I knew you would, and I am so tired of it."))


def model_card(config: RunConfig, labels: Sequence[str], summary: Json) -> str:
    """Write the card of a finished run's model.

    Args:
        labels: the closed label set.
        summary: the content of summary.json.
    """
    parts = [*_training(config, summary), *_figures(config, summary["eval"]), *_asking(config, labels)]
    return "\n\n".join([_header(), *parts, vote_part()]) + "\n"


def _header() -> str:
    tags = "\n".join(f"- {tag}" for tag in ("emotion-recognition", "conversation", "self-play", "selfemo"))
    return f"---\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n{tags}\n---"


def _training(config: RunConfig, summary: Json) -> list[str]:
    start = f"`{Path(config.model.path).name}`" if config.model.path else "initialised weights"
    data = f"Corpus: {summary['corpus']}, {LabelCounts(**summary['training_dialogues'])}."
    play = f"{config.iterations} iterations of self-play (`{config.algorithm.loss}`)"
    return [
        "# Emotions in conversation",
        "This model reads the emotions of a line in a dialogue, and writes replies that show given ones. "
        "It was trained by selfemo with SELF-EMO (arXiv 2604.18003).",
        "## Training",
        f"Start: {start}. {data} {config.sft.steps} SFT steps on the labelled turns, then {play}; "
        f"seed {config.seed}.",
    ]


def _figures(config: RunConfig, evaluations: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        [name, _with_margin(found), *(f"{found[metric]:.3f}" for metric in ("weighted_f1", "macro_f1"))]
        for stage, name in STAGES.items()
        if (found := evaluations.get(stage)) is not None
    ]
    return [
        f"## Figures on {config.evaluation.split} ({evaluations['majority']['n']} turns)",
        table(["", *METRICS.values()], rows),
        "± is half of a 95% interval (normal approximation, turns taken as independent).",
    ]


def _with_margin(found: Mapping[str, float]) -> str:
    share = found["accuracy"]
    return f"{share:.3f} ± {Z_95 * math.sqrt(share * (1 - share) / found['n']):.3f}"


def _asking(config: RunConfig, labels: Sequence[str]) -> list[str]:
    thinking = "with `enable_thinking`" if config.selfplay.thinking else "without thinking, if it has that"
    return [
        "## How to ask it",
        f"One user message in the model's chat template, {thinking}: at most {config.corpus.history_turns} "
        f"earlier lines, each of at most {config.corpus.max_turn_tokens} tokens, then the line to read.",
        f"```text\n{recognizer_text(EXAMPLE, labels)}\n```",
        "It answers with one to three of the labels, the main one first, such as "
        f"`{format_answer(labels[:2])}`. Decode greedily.",
    ]
