"""Write a finished run around a tiny model that a few steps taught the answer format."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from selfemo.config.load import as_yaml
from selfemo.config.schema import (
    CorpusConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
    SelfPlayConfig,
)
from selfemo.corpora.registry import load_corpus
from selfemo.evaluation.evaluate import prompts_of
from selfemo.evaluation.turns import EvaluationTurn, evaluation_turns
from selfemo.inference.finished_model import find_model
from selfemo.selfplay.prompts import recognizer_text
from selfemo.tokens.init_model import init_model
from selfemo.weights.convert import hf_to_megatron

CORPUS = load_corpus("everyday")
SHAPE = ModelConfig(
    vocab_size=600,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    max_length=320,
)
CONFIG = RunConfig(
    model=SHAPE,
    corpus=CorpusConfig(name="everyday", history_turns=1, max_turn_tokens=24),
    selfplay=SelfPlayConfig(min_utterance_words=1, max_utterance_tokens=24),
    rollout=RolloutConfig(kv_cache_bytes=32 << 20),
)
LIMIT = 16
FINAL_VERSION = 5
REFERENCE_VERSION = 2
CHECKPOINT_VERSION = 4


def write_finished_run(run: Path) -> None:
    """Write a run by hand, in the form that a run leaves.

    It holds an initial and a trained model, a checkpoint of the initial weights, a reference, and
    the sync events of all.
    """
    run.mkdir()
    (run / "config.yaml").write_text(as_yaml(CONFIG))
    texts = [recognizer_text(c.turns[:2], CORPUS.labels) for c in CORPUS.conversations]
    init_model(run / "model-initial", SHAPE, texts, seed=3)
    teach(run / "model-initial", run / "model")
    checkpoint = run / "checkpoints" / "iteration-000001"
    hf_to_megatron(run / "model-initial", checkpoint, lambda name, size: None)
    torch.save({"common": {"iteration": 1, "weight_version": CHECKPOINT_VERSION}}, checkpoint / "common.pt")
    reference = run / "checkpoints" / "reference"
    hf_to_megatron(run / "model", reference, lambda name, size: None)
    torch.save({"common": {"optimizer": False}}, reference / "common.pt")
    before, first, *later = (
        {"event": "sync", "version": version}
        for version in (1, REFERENCE_VERSION, CHECKPOINT_VERSION, FINAL_VERSION)
    )
    events = [
        before,
        {"event": "eval", "stage": "start"},
        {"event": "sft", "step": 0},
        first,
        {"event": "eval", "stage": "sft"},
        *later,
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def teach(start: Path, target: Path) -> None:
    """Train on the answers of the first dev turns, so that generation and likelihood have something
    to measure.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(start)
    prompts = prompts_of(find_model(start), CORPUS.labels)
    pairs = [(prompts.recognize(turn.context), prompts.answer_ids(turn.gold[:1])) for turn in dev_turns()]
    pairs += [
        (prompts.respond(turn.context, "Sam", turn.gold[:1]), prompts.utterance_ids("Well now look"))
        for turn in dev_turns()[:2]
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids, targets = torch.zeros(len(pairs), length, dtype=torch.long), torch.full((len(pairs), length), -100)
    for row, (prompt, answer) in enumerate(pairs):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        targets[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = model(ids, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(start).save_pretrained(target)


def dev_turns() -> tuple[EvaluationTurn, ...]:
    return evaluation_turns(CORPUS.split("dev"), LIMIT)
