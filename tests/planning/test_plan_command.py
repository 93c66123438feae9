"""Test `selfemo plan`: its tables and JSON, its refusals, and that it does without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from selfemo.commands.plan import plan
from selfemo.common.errors import UserError
from selfemo.planning.published import ASSUMED, HELD_OUT

FLAGS = ["--model", "qwen3-8b", "train.dtype=bfloat16", "rollout.dtype=bfloat16"]


def _run(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(plan)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.exception


def test_the_command_prints_tables_and_json_of_the_same_plan() -> None:
    code, text, _ = _run(*FLAGS, "parallel.tensor=2")
    assert code == 0
    assert "8.19 B parameters on 8 x h100-80g" in text
    code, text, _ = _run(*FLAGS, "parallel.tensor=2", "parallel.pipeline=2", "--nodes", "2", "--json")
    report = json.loads(text)
    assert code == 0
    assert report["layout"]["data"] == 4
    assert [stage["ranks"] for stage in report["memory_bytes"]] == [list(range(8)), list(range(8, 16))]
    # The first model replica.
    assert {pair["target"] for pair in report["sync"]["pair_bytes"]} == {0, 1, 8, 9}
    assert report["step_seconds"]["total"] == pytest.approx(
        sum(v for k, v in report["step_seconds"].items() if k != "total")
    )


def test_all_violations_are_told_at_once() -> None:
    """Report in one line the violations of fields among themselves, of the layout, and of the model."""
    wrong = [
        "parallel.tensor=3",
        "parallel.pipeline=7",
        "rollout.tensor_parallel=5",
        "parallel.context=2",
        "algorithm.loss=gspo",
        "reward.consistency_low=0.99",
    ]
    long = ["model.max_length=50000", "rollout.kv_cache_bytes=1000000"]
    code, _, error = _run(*FLAGS, *wrong, *long, "--nodes", "2")
    assert code == 1
    assert isinstance(error, UserError)
    for part in (
        "does not divide the world of 16 processes",
        "32 attention heads",
        "8 key-value heads",
        "36 layers",
        "rollout.tensor_parallel=5",
        "algorithm.loss=gspo takes one ratio per sequence, and parallel.context=2",
        "reward.consistency_low=0.99",
        "max_tokens_per_microbatch=4096 cannot hold model.max_length=50000",
        "40960 positions",
        "rollout.kv_cache_bytes=1000000 holds",
    ):
        assert part in str(error)
    assert "\n" not in str(error)


def test_unknown_keys_and_wrong_values_are_told_together() -> None:
    _, _, error = _run(
        "--model", "qwen3-8b", "parallel.tenso=2", "train.learning_rate=quick", "selfplay.temperature=-1"
    )
    for part in (
        "parallel.tenso (did you mean 'tensor'?)",
        "train.learning_rate='quick'",
        "selfplay.temperature=-1",
    ):
        assert str(error).count(part) == 1


def test_a_terminal_of_eighty_columns_shows_every_figure() -> None:
    _, text, _ = _run(*FLAGS, "parallel.tensor=2", "parallel.pipeline=2", "--nodes", "2")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text  # rich cuts text that does not fit
    for label in (
        "stage 0, ranks 0-7, each",
        "stage 1, ranks 8-15, each",
        "engine weights",
        "wake-up",
        "checkpoint",
        "from rank",
    ):
        assert label in text


def test_accuracy_shows_every_published_run_and_its_misses() -> None:
    code, text, _ = _run("--accuracy")
    assert code == 0
    assert text.count("held out") == len(HELD_OUT)
    assert "fitted" in text
    assert text.count("guessed") == len(ASSUMED)
    assert "136.0" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--nodes", "100000"), "is 800,000 GPUs; expected at most 16,384"),
        (("--prompt-tokens", "100000"), "--prompt-tokens=100000 is above model.max_length, 4096"),
        (("--answer-tokens", "5000"), "--answer-tokens=5000 is above"),
        (("--utterance-tokens", "5000"), "--utterance-tokens=5000 is above selfplay.max_utterance_tokens"),
    ],
)
def test_a_world_or_a_mean_that_cannot_be_is_refused(arguments: tuple[str, ...], told: str) -> None:
    _, _, error = _run(*FLAGS, "model.max_length=4096", *arguments)
    assert isinstance(error, UserError)
    assert told in str(error)


def test_the_command_plans_4096_gpus_without_torch() -> None:
    """Importing torch takes longer than the plan: a dry run on a login node must not wait for it."""
    program = (
        "import sys; from selfemo.commands.main import app\n"
        f"app({['plan', *FLAGS, '--nodes', '512', 'parallel.tensor=2', '--json']!r}, standalone_mode=False)\n"
        "assert not {'torch', 'vllm', 'megatron', 'transformers'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, cwd=Path(__file__).parents[2]
    )
