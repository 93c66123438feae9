"""Test tools/gpu_kernels.py where there is no GPU: it runs alone, finds a wrong kernel, keeps its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfemo.kernels import torch_backend
from tests.helpers.kernel_cases import PRESETS, make_case
from tools.kernels.gpu import trainer
from tools.kernels.gpu.cases import Mismatch, Place, check_loss, within
from tools.kernels.gpu.predictions import (
    BOTH,
    EAGER_BOTH,
    FORWARD,
    GEMMS,
    LEAST_SHARE,
    LIGER_BOTH,
    OURS,
    OURS_BOTH,
    OURS_PROJECTION,
    PREDICTIONS,
    PROJECTION,
    compared,
)
from tools.kernels.gpu.program import ABSENT_STATUS, TIME_IS_UP, Program
from tools.kernels.gpu.rows import Timed

ROOT = Path(__file__).resolve().parents[2]
NOT_NEEDED = {"transformers", "vllm", "megatron", "pytest", "hypothesis", "rich", "safetensors", "yaml"}
ON_CPU = Place("cpu", "torch", is_small=True)


@pytest.mark.long
def test_it_runs_in_a_checkout_that_is_not_installed_with_torch_and_triton_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = (ROOT / "tools" / "gpu_kernels.py", "--device", "cpu", "--output", tmp_path / "found")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    imports = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if "import time:" in line]
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "at most" in done.stdout.splitlines()[0]
    assert "send back" in done.stdout.splitlines()[-1]
    assert {name.split(".")[0] for name in imports} & NOT_NEEDED == set()
    assert "selfemo.kernels.triton_vocab" in imports
    found = json.loads((tmp_path / "found" / "kernels.json").read_text())
    assert found["failures"] == {}
    assert sorted(name.replace("(triton)", "(torch)") for name in found["cases"]) == sorted(
        2 * [name for name in found["cases"] if name.endswith("(torch)")]
    )
    assert len(found["cases"]) >= 90
    assert found["trainer"].startswith("logprobs "), found["trainer"]
    ours = [row for row in found["timings"] if row["formula"].startswith("selfemo")]
    assert len(ours) == 6
    assert all(row["median_ms"] > 0 for row in ours)
    assert [one["note"] for one in found["settings"]] == [""] * 8
    page = (tmp_path / "found" / "kernels.md").read_text()
    assert all(prediction.text in page for prediction in PREDICTIONS)
    assert json.loads((tmp_path / "found" / "launches.json").read_text())["launches"].keys() == {
        "vocab_stats",
        "dlogits",
        "sequence_loss",
        "group_advantages",
    }


def test_steps_that_are_a_thousandth_off_or_no_number_are_told_and_rounding_is_not() -> None:
    recorded = json.loads(trainer.RECORDED.read_text())["figures"]
    assert recorded.keys() == {"logprobs", "losses", "gradient norms", "statistics", "weights moved"}
    for factor, is_near in ((1 + 1e-6, True), (1.001, False), (float("nan"), False)):
        for name in recorded:
            found = {**recorded, name: [factor * value for value in recorded[name]]}
            line, near = trainer.compare(found, recorded)
            assert near is is_near, (name, factor, line)
    assert not trainer.compare({**recorded, "losses": recorded["losses"][:1]}, recorded)[1]


def test_steps_that_lack_a_package_say_which() -> None:
    """Hide megatron-core from a process, as on a machine that has torch and triton alone."""
    hidden = "import sys; sys.modules['megatron'] = None; from tools.kernels.gpu.trainer import main; "
    done = subprocess.run(
        [sys.executable, "-c", hidden + "sys.exit(main(['--device', 'cpu']))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (
        ABSENT_STATUS,
        "not run: needs megatron.core, not installed here\n",
    )


def test_a_gradient_that_is_wrong_by_a_thousandth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch_backend.TorchBackend.dlogits_

    def wrong(self: torch_backend.TorchBackend, logits_TV: torch.Tensor, *rest: object) -> None:
        right(self, logits_TV, *rest)  # type: ignore[arg-type]
        logits_TV.mul_(1.001)

    check_loss(ON_CPU, make_case(), PRESETS["grpo"])
    monkeypatch.setattr(torch_backend.TorchBackend, "dlogits_", wrong)
    with pytest.raises(Mismatch, match="gradient"):
        check_loss(ON_CPU, make_case(), PRESETS["grpo"])


def test_no_number_is_not_within_any_bound() -> None:
    with pytest.raises(Mismatch, match="logprob"):
        within("logprob", float("nan"), 1.0)


def test_nothing_is_begun_when_the_time_is_up_and_what_was_left_out_is_told(tmp_path: Path) -> None:
    found = Program("cpu", tmp_path, 0.0, lambda line: None).run()
    assert found.cases == {}
    assert set(found.failures.values()) == {TIME_IS_UP}  # a proof that did not run is none
    assert {row.note for row in found.timings} == {TIME_IS_UP}
    assert all(one.median_ms is None and one.note for one in found.settings)


def _rows(times_ms: dict[tuple[str, str], float], tokens: int) -> dict[tuple[str, int, str], Timed]:
    return {
        (workload, tokens, formula): Timed(workload, tokens, formula, ms, nbytes=10**9)
        for (workload, formula), ms in times_ms.items()
    }


FAST = {
    (FORWARD, OURS): 0.9,
    (BOTH, OURS_BOTH): 2.0,
    (BOTH, EAGER_BOTH): 30.0,
    (PROJECTION, OURS_PROJECTION): 10.0,
    (PROJECTION, GEMMS): 9.5,
}
SLOW = {
    **FAST,
    (FORWARD, OURS): 1.0,
    (BOTH, OURS_BOTH): 4.0,
    (BOTH, LIGER_BOTH): 2.0,
    (PROJECTION, GEMMS): 5.0,
}


def _verdicts(times_ms: dict[tuple[str, str], float], card: str, tokens: int = 8192) -> list[str]:
    return [verdict for *_, verdict in compared(_rows(times_ms, tokens), tokens, 1e12, card)]


def test_predictions_are_judged_on_the_card_that_they_were_made_for() -> None:
    assert _verdicts(FAST, "NVIDIA H100 80GB HBM3")[:5] == ["met", "met", "unmeasured", "met", "met"]
    assert _verdicts(SLOW, "NVIDIA H100 80GB HBM3")[:5] == ["MISSED"] * 5
    assert _verdicts(FAST, "NVIDIA H200")[:5] == ["not judged", "not judged", "unmeasured", "met", "met"]
    assert set(_verdicts(FAST, "")) == {"not judged", "unmeasured"}
    four_times = {key: 4 * ms for key, ms in FAST.items()}
    assert _verdicts(four_times, "NVIDIA H100", 32_768)[:2] == ["met", "met"]


def test_a_share_of_the_copy_is_judged_on_every_card() -> None:
    """One gigabyte in 1.1 ms is 91% of 1e12 bytes/s, in 1.3 ms 77%."""
    for ms, verdict in ((1.1, "met"), (1.3, "MISSED")):
        rows = {key: replace(row, median_ms=ms) for key, row in _rows(FAST, 8192).items()}
        lines = {text: found for text, _, found in compared(rows, 8192, 1e12, "NVIDIA B200")}
        assert lines[f"{FORWARD} at least {LEAST_SHARE:.0%} of the copy bandwidth"] == verdict


def test_the_predictions_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    for prediction in PREDICTIONS:
        assert prediction.text in text, prediction.text
    assert f"{LEAST_SHARE:.0%} of the copy bandwidth" in text
