"""Test faults under torchrun.

Its restart resumes a run, and a stop signal leaves a run that can be resumed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.commands.train import OWN_STORES
from tests.helpers.fault_runs import CONFIG, LAYOUTS, ROOT, fingerprint

pytestmark = pytest.mark.faults


def torchrun(run: Path, faults: list[dict], *options: str) -> subprocess.CompletedProcess[str]:
    """Run `torchrun ... selfemo train` with faults, on two processes."""
    launch = ["torchrun", "--standalone", "--nproc-per-node", "2", *options, "--no-python"]
    program = [sys.executable, "-m", "tests.faults.run_with_faults", json.dumps(faults)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        OWN_STORES: "1",
    }
    command = [*launch, *program, "train", "--config", CONFIG, f"output_dir={run}", *LAYOUTS["TP2"]]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )


def test_torchruns_restart_resumes(untouched, tmp_path):
    """Kill a rank in the second iteration of the first attempt.

    The second attempt must finish to the same bits.
    """
    faults = [{"at": "step", "count": 2, "rank": 1, "do": "kill", "attempt": 0}]
    ended = torchrun(tmp_path / "run", faults, "--max-restarts", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resuming from" in ended.stdout + ended.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(untouched)


def test_a_signal_to_the_ranks_ends_torchrun_with_status_0(tmp_path):
    """Send SLURM's signal before a time limit, as examples/launch.sh passes it on."""
    ended = torchrun(tmp_path / "run", [{"at": "sft", "count": 5, "rank": 1, "do": "usr1"}])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "stopped by SIGUSR1 after 5 SFT steps" in ended.stdout + ended.stderr
    assert (tmp_path / "run" / "checkpoints" / "sft-000005").is_dir()
