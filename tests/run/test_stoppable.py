"""Test a request to stop.

It is heard from the first moment, kept until a safe point, and followed by all ranks or none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = """
import os, sys, types
from selfemo.config.schema import CheckpointConfig, CorpusConfig, RunConfig
from selfemo.commands.train import run_training
from selfemo.records.directory import RunDirectory

claim = RunDirectory.claim
def signalled(config):  # before the log, the watchdog, and every heavy import
    assert "torch" not in sys.modules
    os.kill(os.getpid(), SIGNAL)
    return claim(config)
RunDirectory.claim = signalled

def train(config, run, terminal, signals):
    terminal.error(f"set up, asked by {int(signals.asked)}")
    TRAIN
sys.modules["selfemo.trainer"] = types.SimpleNamespace(train=train)
corpus, checkpoint = CorpusConfig(name="everyday"), CheckpointConfig(grace_s=1)
run_training(RunConfig(output_dir=sys.argv[1], corpus=corpus, checkpoint=checkpoint))
"""


def launch(run: Path, number: int, train: str = "pass", before: str = "") -> subprocess.CompletedProcess[str]:
    program = LAUNCH.replace("SIGNAL", str(number)).replace("TRAIN", train)
    command = ["bash", "-c", f'{before} exec "$@"', "-", sys.executable, "-c", program, str(run)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("before", ["", "trap '' USR1 TERM;"], ids=["plain", "ignored by the launcher"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_at_the_start_of_set_up_neither_ends_the_process_nor_is_lost(tmp_path, number, before):
    result = launch(tmp_path / "run", int(number), before=before)
    assert (result.returncode, result.stderr) == (0, f"set up, asked by {int(number)}\n")


def test_set_up_that_takes_longer_than_the_grace_ends_the_process(tmp_path):
    result = launch(tmp_path / "run", int(signal.SIGUSR1), "import time; time.sleep(60)")
    assert result.returncode == 1
    assert "in phase setup: asked to stop, and not done within checkpoint.grace_s=1" in result.stderr


def _check_twice(asked_rank: int) -> list[str]:
    import torch

    from selfemo.process.stop import StopSignals
    from selfemo.run.stoppable import Stopped, StopRequest

    signals = StopSignals()
    request, said = StopRequest(torch.device("cpu"), signals), []
    for _ in range(2):
        try:
            request.check()
            said.append("go on")
        except Stopped as stopped:
            said.append(str(stopped))
        signals.asked = int(signal.SIGUSR1) if int(os.environ["RANK"]) == asked_rank else 0
    return said


def test_one_rank_that_was_asked_stops_all(distributed):
    assert distributed(2, _check_twice, 1) == [["go on", "SIGUSR1"]] * 2
