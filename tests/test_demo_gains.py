"""Run the demo as a user does, for three seeds: self-play must end above SFT and above the majority class.

`make test-demo`; 23 minutes on two cores with bf16, other work beside it. docs/study/log.md has the last run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.demo
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_self_play_ends_above_its_start(seed: int, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RUN_DIR": str(run),
        "OMP_NUM_THREADS": "1",
    }
    for command in (
        ["bash", "examples/quickstart_cpu.sh", f"seed={seed}"],
        [sys.executable, "tools/check_run.py", str(run), "--gains"],
    ):
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
