"""A corpus whose hidden dialogues carry a label that no other has, votes included: to find it is a leak."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfemo.config.schema import CorpusConfig, RunConfig, SelfPlayConfig
from selfemo.corpora.conversation import Conversation
from selfemo.corpora.labelled import draw_labelled

SEED = 5
SHARE = 0.4
PLANTED = "envy"
LABEL_SET = ("anger", PLANTED, "joy", "neutral")
IDS = tuple(f"d{number}" for number in range(20))
CONFIG = RunConfig(
    seed=SEED,
    corpus=CorpusConfig(name="jsonl", labelled_share=SHARE),
    selfplay=SelfPlayConfig(
        seeds_per_iteration=10,
        turns=2,
        recognizer_group_size=4,
        responder_group_size=2,
        max_answer_tokens=20,
        max_utterance_tokens=80,
    ),
)


def shown_ids() -> set[str]:
    """Ids of the dialogues that keep their labels under SEED and SHARE."""
    keys = draw_labelled([Conversation("jsonl", "train", name, ()) for name in IDS], SHARE, SEED)
    return {key.rsplit("/", 1)[1] for key in keys}


def write_corpus(root: Path, planted: str = PLANTED) -> Path:
    """Write the corpus: shown dialogues go joy, anger, joy; in hidden ones every turn is `planted`."""
    shown = shown_ids()
    root.mkdir()
    (root / "labels.json").write_text(json.dumps(LABEL_SET))
    (root / "train.jsonl").write_text("".join(_line(name, name not in shown, planted) for name in IDS))
    for split in ("dev", "test"):
        (root / f"{split}.jsonl").write_text(_line(f"{split}-dialogue", True, PLANTED))
    return root


def config_for(root: Path, **corpus: Any) -> RunConfig:
    """CONFIG over the corpus at `root`."""
    return replace(CONFIG, corpus=replace(CONFIG.corpus, path=str(root), **corpus))


def _line(name: str, planted_everywhere: bool, planted: str) -> str:
    turns = [
        {"speaker": speaker, "text": f"{name} goes on with line number {number} so", "labels": [label]}
        for number, (speaker, label) in enumerate((("Ann", "joy"), ("Bo", "anger"), ("Ann", "joy")))
    ]
    if planted_everywhere:
        turns = [{**turn, "labels": [planted], "votes": {planted: 3}} for turn in turns]
    return json.dumps({"id": name, "turns": turns}) + "\n"
