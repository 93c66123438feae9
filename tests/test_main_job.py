"""Run the main job as a user does: the quickstart script under torchrun with real Megatron and
vLLM, on the bundled corpus and the small model of `make smoke`.

All tests share one run of a shortened configuration. A second run, with `make test-slow`, proves
that the seed determines every figure; tests/faults/test_resume.py compares runs to the bit in `make
test`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfemo.records.reading import read_run
from selfemo.report.page import render
from selfemo.report.planned import planned_rows
from tools.check_run import checks, learning_checks

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "examples/configs/smoke_cpu.yaml"
SHORT = (
    "corpus.name=everyday",
    "sft.steps=12",
    "iterations=3",
    "selfplay.seeds_per_iteration=6",
    "evaluation.limit=40",
    "tracking.wandb=offline",
)
SECRETS = {
    name: f"never-written-{name.lower()}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")
}
SECRETS["WANDB_API_KEY"] = "0123456789abcdef" * 2 + "01234567"  # W&B checks a key's length


def quickstart(output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run examples/quickstart_cpu.sh into `output`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **SECRETS, "PATH": path, "RUN_DIR": str(output), "OMP_NUM_THREADS": "1"}
    environment["CONFIG"] = CONFIG
    command = ["bash", "examples/quickstart_cpu.sh", *overrides]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("main-job") / "run"
    result = quickstart(output, *SHORT)
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def test_summary_holds_what_it_promises(run_dir):
    assert [name for name, passed in checks(summary(run_dir)) if not passed] == []
    assert summary(run_dir)["corpus"] == "everyday"


def test_metrics_follow_the_stages(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    accounts = ("phases", "memory")  # time lines after what they cover, and bytes held, at the end
    events = [record["event"] for record in records if record["event"] not in accounts]
    assert events[:2] == ["sync", "eval"]
    assert events.count("sft") == 12
    assert events[-7:] == ["sync", "iteration", "sync", "iteration", "sync", "iteration", "eval"]


def test_the_report_is_made_of_what_the_run_recorded(run_dir):
    """Check that a real run fills every section of the report, as the made-up runs of tests/report
    do.

    Planned bytes are those that were held.
    """
    records = read_run(run_dir)
    page = render(records)
    assert "has been recorded yet" not in page
    assert page.count("<caption>Confusions") == 3
    exact = [row for row in planned_rows(records) if row.exact]
    assert {row.name for row in exact} == {
        "Weights",
        "Gradients",
        "Optimizer",
        "Reference",
        "Weight sync, received",
    }
    assert all(row.is_met for row in exact)


def test_trackers_show_the_rewards_of_metrics_jsonl(run_dir):
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("reward/reward")] == pytest.approx(
        [r["reward"] for r in read_run(run_dir).of("iteration")]
    )
    assert len(list(run_dir.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_no_file_of_a_run_holds_a_secret(run_dir):
    """Search configuration, logs, metrics, trackers (W&B's own files among them), checkpoints and
    report.
    """
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {
        ".yaml",
        ".log",
        ".wandb",
        ".jsonl",
        ".sqlite",
        ".safetensors",
        ".distcp",
    }
    held = [
        (path.name, name)
        for path in files
        for name, secret in SECRETS.items()
        if secret.encode() in path.read_bytes()
    ]
    assert held == []


def test_samples_show_dialogues_with_candidates_and_rewards(run_dir):
    record = json.loads((run_dir / "samples.jsonl").read_text().splitlines()[0])
    group = record["groups"][0]
    assert group["role"] == "recognizer"
    assert len(group["candidates"]) == 8
    assert set(group["candidates"][0]["rewards"]) == {"alignment", "consistency", "format"}


def test_the_export_is_what_was_trained(run_dir):
    """Load the export by plain transformers: it differs from the model with which the run started."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = AutoModelForCausalLM.from_pretrained(run_dir / "model")
    initial = AutoModelForCausalLM.from_pretrained(run_dir / "model-initial")
    moved = [
        name
        for (name, a), (_, b) in zip(trained.named_parameters(), initial.named_parameters())
        if not a.equal(b)
    ]
    assert len(moved) == len(list(trained.named_parameters()))
    assert AutoTokenizer.from_pretrained(run_dir / "model").chat_template


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(run_dir, tmp_path):
    result = quickstart(tmp_path / "again", *SHORT)
    assert result.returncode == 0, result.stdout + result.stderr

    def figures(directory: Path) -> dict:
        content = summary(directory)
        content.pop("seconds")
        content["rollout"].pop("tokens_per_second")
        content["weight_sync"].pop("seconds_mean")
        return content

    assert figures(run_dir) == figures(tmp_path / "again")
    assert (run_dir / "samples.jsonl").read_text() == (tmp_path / "again" / "samples.jsonl").read_text()
    first, second = ((d / "model" / "model.safetensors").read_bytes() for d in (run_dir, tmp_path / "again"))
    assert first == second


@pytest.mark.slow
def test_the_small_model_learns(tmp_path):
    """Train it for as long as it takes to read better than the majority class, and to earn more reward."""
    longer = ("sft.steps=400", "sft.batch_size=32", "iterations=9", "selfplay.seeds_per_iteration=12")
    result = quickstart(tmp_path / "run", "corpus.name=everyday", *longer)
    assert result.returncode == 0, result.stdout + result.stderr
    found = learning_checks(summary(tmp_path / "run"), tmp_path / "run")
    assert [name for name, passed in found if not passed] == []


@pytest.mark.slow
def test_the_same_command_again_says_that_the_run_is_complete(run_dir):
    result = quickstart(run_dir, *SHORT)
    assert result.returncode == 0
    assert "complete" in result.stdout + result.stderr


def test_another_configuration_may_not_take_the_directory(run_dir):
    result = quickstart(run_dir, *SHORT, "seed=2")
    assert result.returncode == 2
    assert "another configuration" in result.stderr
    assert "Traceback" not in result.stderr
