"""Test gpu-check without a GPU: its output and exit status, the isolation of its steps, and the
harness on a CPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from selfemo.commands.doctor import read_driver
from selfemo.megatron.device import select_device
from selfemo.megatron.parallel import leave_parallel
from tests.helpers.distributed import DistributedRunner
from tools.gpu_check.parity import LOGITS, Computed, compare, told
from tools.gpu_check.rounding import TIMES_EXPECTED, expected_distance
from tools.gpu_check.runner import SKIPPED_STATUS, run_steps
from tools.gpu_check.steps import Machine, Step, steps
from tools.gpu_check.system import small_config

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["doctor", "kernels", "parity", "sync", "production-sync", "sleep", "iteration", "production"]
needs_no_gpu = pytest.mark.skipif(bool(read_driver().gpus), reason="this machine has a GPU")


def machine(output: Path, device: str = "cpu", gpus: int = 0) -> Machine:
    return Machine(device, gpus, ROOT, output)


def python(name: str, program: str, deadline_s: int = 60) -> Step:
    return Step(name, "?", (sys.executable, "-c", program), deadline_s, "its log")


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is no zombie, which nobody has waited for yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_no_gpu
@pytest.mark.parametrize(
    "command",
    [["make", "--silent", "gpu-check"], [sys.executable, "-m", "tools.gpu_check"]],
    ids=["make", "module"],
)
def test_without_a_gpu_every_step_says_so_and_the_status_is_three(command: list[str]) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [*NAMES, "gpu-check"]
    assert all("no NVIDIA GPU" in line for line in lines[:-1])
    # 2 is make's own status for a recipe that failed.
    assert result.returncode == (2 if command[0] == "make" else SKIPPED_STATUS)
    assert "exit status 3" in lines[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_a_step_that_crashes_or_hangs_stops_no_other_and_says_what_to_send(tmp_path: Path) -> None:
    """Run steps of which one crashes and one hangs; the hanging one has children that would outlive it.

    One of them has a session of its own, as torchrun's ranks have.
    """
    pids = tmp_path / "pids"
    child = (
        "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(600)']; "
        "children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]; "
        f"open({str(pids)!r}, 'w').write(' '.join(str(c.pid) for c in children)); time.sleep(600)"
    )
    said: list[str] = []
    started = time.monotonic()
    outcomes = run_steps(
        [
            python("crash", "raise RuntimeError('broken')"),
            python("hang", child, deadline_s=10),
            python("absent", f"print('needs a GPU'); raise SystemExit({SKIPPED_STATUS})"),
            python("fine", "print('done')"),
        ],
        machine(tmp_path),
        said.append,
    )
    assert time.monotonic() - started < 300
    assert [outcome.result for outcome in outcomes] == ["failed", "timed out", "skipped", "passed"]
    assert [bool(outcome.send_back) for outcome in outcomes] == [True, True, False, False]
    while running := [pid for pid in map(int, pids.read_text().split()) if is_running(pid)]:
        assert time.monotonic() - started < 300, running
        time.sleep(0.1)
    assert "broken" in outcomes[0].tail[-1]
    assert any("needs a GPU" in line for line in said)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["result"] for step in report["steps"]] == ["failed", "timed out", "skipped", "passed"]
    text = (tmp_path / "report.md").read_text()
    assert "| crash | failed |" in text
    assert "RuntimeError: broken" in text


def test_the_steps_are_those_promised_each_with_a_deadline_and_what_to_send(tmp_path: Path) -> None:
    for device, gpus in (("cpu", 0), ("cuda", 1), ("cuda", 8)):
        found = steps(machine(tmp_path, device, gpus))
        assert [step.name for step in found] == NAMES
        assert all(step.send_back and step.question.endswith("?") for step in found)
        assert sum(step.deadline_s for step in found) <= 45 * 60
    commands = {step.name: " ".join(step.command) for step in found}
    assert "--nproc-per-node 2" in commands["sync"]
    assert "parallel.tensor=2" in commands["iteration"]
    assert "train.dtype=bfloat16" in commands["iteration"]


def test_the_page_about_failures_has_a_section_for_every_step() -> None:
    page = (ROOT / "docs" / "gpu_failures.md").read_text()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == NAMES
    sections = re.split(r"^## \S+$", page, flags=re.MULTILINE)[1:]
    assert [name for name, text in zip(NAMES, sections, strict=True) if "end back" not in text] == []


def test_the_iterations_settings_are_a_configuration(tmp_path: Path) -> None:
    """Parse the settings for both devices.

    On a GPU machine a wrong key would cost the most expensive step.
    """
    from selfemo.commands.preflight import check_layout
    from selfemo.config.load import load_config

    for device, gpus in (("cpu", 0), ("cuda", 1), ("cuda", 8)):
        planned = machine(tmp_path, device, gpus)
        for step in steps(planned)[-2:]:
            path, *overrides = step.command[step.command.index("--config") + 1 :]
            config = load_config(ROOT / path, overrides)
            check_layout(config, planned.processes)
            assert config.iterations == 1


def test_production_has_every_setting_of_the_8b_file_that_a_small_run_can_have(tmp_path: Path) -> None:
    """Compare its sections train, rollout and sync with examples/configs/qwen3_8b.yaml's."""
    from selfemo.config.load import load_config

    command = steps(machine(tmp_path, "cuda", 8))[-1].command
    path, *overrides = command[command.index("--config") + 1 :]
    ours = load_config(ROOT / path, overrides)
    theirs = load_config(ROOT / "examples/configs/qwen3_8b.yaml", ["model.path="])
    for section, names in (
        ("train", ("dtype", "share_prompts", "attention_backend", "frozen_layers")),
        ("rollout", ("dtype", "sleep", "enforce_eager")),
        ("parallel", ("sequence_parallel", "distributed_optimizer")),
        ("sync", ("mode",)),
    ):
        for name in names:
            ours_value, theirs_value = (getattr(getattr(c, section), name) for c in (ours, theirs))
            assert ours_value == theirs_value, (section, name)
    assert ours.rollout.tensor_parallel == 2
    assert ours.sync.checksum_every == 1  # at every sync: the run has three


def test_a_step_whose_libraries_are_absent_is_skipped_by_name(tmp_path: Path) -> None:
    step = Step(
        "engine", "Does it run?", (sys.executable, "-c", "1"), 9, "its log", ("json", "no_such_engine")
    )
    (outcome,) = run_steps([step], machine(tmp_path), lambda _: None)
    assert (outcome.result, outcome.tail) == ("skipped", ("needs no_such_engine, not installed here",))
    assert "no_such_engine" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--device", "tpu"]])
def test_wrong_arguments_end_with_two(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tools.gpu_check", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def _parity_in_bf16() -> None:
    """Run the comparison of step `parity` as a GPU's local half: it is the same code there."""
    compare(small_config(["train.dtype=bfloat16"]), select_device())
    leave_parallel()


@pytest.mark.long
def test_the_local_half_of_parity_holds_in_bf16(distributed: DistributedRunner) -> None:
    distributed(1, _parity_in_bf16, timeout_s=300)


def test_parity_allows_rounding_and_no_error_of_a_tenth() -> None:
    """Compare with the expected distance by hand: 58 roundings of four layers, 2^-8 / 2.5 each, and twice as
    many on the way back.
    """
    assert expected_distance("bfloat16", 4, is_gradient=False) == pytest.approx(58**0.5 / 640)
    limit = TIMES_EXPECTED * expected_distance("bfloat16", 4, is_gradient=True)
    assert limit == pytest.approx(4 * 116**0.5 / 640)
    truth = Computed(torch.randn(3, 7), {"norm": torch.randn(64)})
    rounded = Computed(truth.logits_NV.bfloat16(), {"norm": truth.gradients["norm"].bfloat16()})
    allowed = {LOGITS: limit / 2, "norm": limit}
    assert all(0 < off < 2**-8 for off in told("rounded", rounded, truth, allowed).values())
    for factor in (1.1, float("nan")):
        wrong = Computed(truth.logits_NV, {"norm": factor * truth.gradients["norm"]})
        with pytest.raises(SystemExit, match="wrong differs from transformers: norm"):
            told("wrong", wrong, truth, allowed)


@pytest.mark.slow
@needs_no_gpu
def test_steps_that_a_cpu_can_run_pass_there(tmp_path: Path) -> None:
    """Run two real steps as processes of the real harness; all are in `make gpu-check-cpu`."""
    chosen = [step for step in steps(machine(tmp_path)) if step.name in ("kernels", "parity")]
    outcomes = run_steps(chosen, machine(tmp_path), print)
    assert [outcome.result for outcome in outcomes] == ["passed"] * 2, "\n".join(
        line for o in outcomes for line in o.tail
    )
    assert "local layer was compared with transformers alone" in outcomes[1].tail[-1]
