"""Fuzz a run's records: all that the report, a resume and TensorBoard make of them, or one line."""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.inference.run_weights import _synced
from selfemo.records.reading import RunRecords, read_run
from selfemo.report.dialogues import dialogue_views
from selfemo.report.emotions import confusions, label_rows
from selfemo.report.headlines import headlines, run_facts
from selfemo.report.page import render, write_page
from selfemo.report.planned import planned_rows
from selfemo.report.timeline import _sums, collect_spans
from selfemo.run.outcome import dialogue_lines
from selfemo.run.scalars import scalars_of
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens
from tests.helpers.made_run import make_run

FILES = ("metrics.jsonl", "samples.jsonl", "summary.json", "training_dialogues.json")
KEYS = (
    *("event", "stage", "n", "per_label_f1", "confusion", "readings", "iteration", "seconds", "rollout"),
    *("samples", "tokens", "reward", "reward_$x", "logprob_gap_max", "step_applied", "flywheel", "ranks"),
    *("version", "path", "received_bytes", "world_size", "eval", "counts", "seed_turns", "dialogue"),
    *("groups", "turn", "candidates", "rewards", "failed_gates", "read", "score", "total", "joy"),
)
TOKENS = [
    *(f'"{key}": '.encode() for key in KEYS),
    *(b'"iteration"', b'"phases"', b'["save", 1, 2]', b"[[]]", b'"$_"', b"1e300", b"-3", b"0.0", b'"1"'),
]
CONFIG = """
iterations: 5
parallel: {tensor: 2}
model: {vocab_size: 512, hidden_size: 64, intermediate_size: 96, num_layers: 2, num_heads: 4, num_kv_heads: 2}
"""
"""Short, since it is read with every input."""
PAGES = 0.0005
"""Share of inputs whose whole page is drawn, which takes seconds."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Make the records of a run, with few dialogues."""
    run = make_run(tmp_path_factory.mktemp("made") / "run")
    found = {name: (run / name).read_bytes() for name in FILES}
    dialogues = found["samples.jsonl"].splitlines(keepends=True)
    return found | {"samples.jsonl": b"".join(dialogues[:2])}


def show(root: Path, is_drawn: bool) -> RunRecords:
    """Read a run, and compute what is shown of it; its last dialogue is shown even if others are damaged."""
    assert all(line.isprintable() for line in dialogue_lines(root / "samples.jsonl"))
    records = read_run(root)
    spans = collect_spans(records)
    if any(spans.values()):
        _sums(spans, max(end for mine in spans.values() for _, _, end in mine))
    headlines(records), run_facts(records), label_rows(records), confusions(records)
    dialogue_views(records.dialogues), planned_rows(records), _synced(root / "metrics.jsonl")
    if is_drawn:
        write_page(root / "report.html", render(records, gpu="h100-80g"))
    return records


def one_damaged(rng: random.Random, content: bytes) -> bytes:
    """Damage one record of a file. Kinds of records are as likely as each other, whatever their number."""
    lines = content.splitlines(keepends=True)
    kinds: dict[object, list[int]] = {}
    for number, line in enumerate(lines):
        kinds.setdefault(json.loads(line).get("event"), []).append(number)
    chosen = rng.choice(kinds[rng.choice(list(kinds))])
    lines[chosen] = damaged(rng, [lines[chosen]], TOKENS) if rng.random() < 0.9 else of_tokens(rng, TOKENS)
    return b"".join(lines)


@fuzz
@pytest.mark.parametrize("name", FILES)
def test_run_records(name: str, seed: int, tally: Tally, scratch: Path, sound: dict[str, bytes]) -> None:
    (scratch / "config.yaml").write_text(CONFIG)
    for other, content in sound.items():
        (scratch / other).write_bytes(content)
    for rng in tally.batch(seed):
        content = one_damaged(rng, sound[name])
        (scratch / name).write_bytes(content)
        found = tally.try_input(functools.partial(show, scratch, rng.random() < PAGES), content)
        if isinstance(found, UserError):
            continue
        assert isinstance(found, RunRecords)
        for event in found.events:
            scalars = scalars_of(event)
            assert scalars is None or all(map(math.isfinite, scalars.values.values()))
