"""Test `selfemo flywheel replay` with a real vLLM engine: a record is equal only under its weights.

conftest.py has the run and the engine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands import flywheel as flywheel_commands
from selfemo.common.errors import UserError
from selfemo.config.schema import RewardConfig
from selfemo.emotions.answer import parse_answer
from selfemo.evaluation.evaluate import prompts_of, smoothed_iou
from selfemo.flywheel.flywheel import make_record
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import FlywheelStore
from selfemo.inference import run_weights
from selfemo.inference.engines import StandaloneEngines
from selfemo.inference.finished_model import find_model
from selfemo.rewards.scoring import score_group
from selfemo.rollout.api import GenerationRequest
from tests.helpers.finished_run import (
    CHECKPOINT_VERSION,
    CORPUS,
    FINAL_VERSION,
    REFERENCE_VERSION,
    dev_turns,
)
from tests.helpers.groups import recognizer_group


def record_of(run_dir: Path, engines: StandaloneEngines, version: int, weights: str) -> Record:
    """Make the record that self-play would have written under these weights."""
    model = find_model(run_dir / weights)
    prompts = prompts_of(model, CORPUS.labels)
    prompt = prompts.recognize(dev_turns()[0].context)
    requests = [GenerationRequest(prompt, seed, 12, 1.0) for seed in (11, 12, 13)]
    completions = engines.generator(model).generate(requests)
    group = recognizer_group(["joy"] * 3, ("joy",), context=dev_turns()[0].context)
    samples = tuple(
        replace(
            s,
            prompt_ids=prompt,
            completion_ids=c.token_ids,
            seed=r.seed,
            reading=parse_answer("joy", CORPUS.labels),
        )
        for s, c, r in zip(group.samples, completions, requests)
    )
    ones = dict.fromkeys(CORPUS.labels, 1.0)
    scored = score_group(
        replace(group, samples=samples), RewardConfig(), smoothed_iou(model, CORPUS.labels), ones
    )
    made = make_record(scored, version, version, 0.5)
    return replace(made, prompt_ids=prompt, max_tokens=12, temperature=1.0, weight_version=version)


@pytest.fixture(scope="module")
def recorded_run(run_dir: Path, engines: StandaloneEngines) -> Path:
    """Add four records to the run, one for each kind of weights.

    Theirs are the checkpoint's, the final, the reference's, and weights that are no longer on disk.
    """
    made = [
        (CHECKPOINT_VERSION, "model-initial"),
        (FINAL_VERSION, "model"),
        (REFERENCE_VERSION, "model"),
        (3, "model"),
    ]
    records = [record_of(run_dir, engines, version, weights) for version, weights in made]
    store = FlywheelStore(run_dir / "flywheel.sqlite", writable=True, labels=CORPUS.labels)
    store.append([replace(record, record_id=i, iteration=i) for i, record in enumerate(records, 1)])
    store.close()
    return run_dir


def replayed(
    run: Path, engines: StandaloneEngines, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(flywheel_commands, "StandaloneEngines", lambda: engines)
    result = CliRunner().invoke(
        flywheel_commands.app, ["replay", str(run), *arguments], catch_exceptions=False
    )
    return result.exit_code, result.output


@pytest.mark.long
def test_a_record_comes_out_equal_under_the_weights_of_its_version(
    recorded_run: Path, engines: StandaloneEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for record, version in (("1", CHECKPOINT_VERSION), ("2", FINAL_VERSION), ("3", REFERENCE_VERSION)):
        code, output = replayed(recorded_run, engines, monkeypatch, record)
        assert code == 0, output
        assert f"version {version}" in output
        assert output.count("equal") == 3


def test_other_weights_differ_and_absent_ones_are_refused(
    recorded_run: Path, engines: StandaloneEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = replayed(recorded_run, engines, monkeypatch, "1", "--model", str(recorded_run / "model"))
    assert code == 1
    assert "differs from token" in output
    with pytest.raises(
        UserError,
        match=r"version 3 are not on disk, there are: "
        r"2 \(.*reference\), 4 \(.*iteration-000001\), 5 \(.*model\)",
    ):
        replayed(recorded_run, engines, monkeypatch, "4")


def test_a_run_that_was_killed_in_a_line_still_names_its_versions(tmp_path: Path) -> None:
    """Read a journal whose last line is torn.

    That line is ignored, any other bad line is an error with its place.
    """
    (tmp_path / "model").mkdir()
    (tmp_path / "checkpoints" / "reference").mkdir(parents=True)
    lines = [
        '{"event": "sync", "version": 1}',
        '{"event": "sync", "version": 2}',
        '{"event": "eval", "stage": "sft"}',
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join([*lines, '{"event": "sync", "version": 3}', '{"event": "sync", "ver']))
    assert sorted(run_weights.versions_on_disk(tmp_path)) == [2, 3]
    for bad, message in (
        ("7", r"metrics\.jsonl:2: expected a JSON object"),
        ('{"event": "sync", "version": []}', r"has version \[\]"),
    ):
        metrics.write_text("\n".join([lines[0], bad, ""]))
        with pytest.raises(UserError, match=message):
            run_weights.versions_on_disk(tmp_path)
