"""Run the commands of README and docs as they stand there, on a finished run: `.ci/run` does so
after the short demo.

    python -m tests.helpers.run_commands runs/ci          # the run stands for runs/demo

Each takes seconds to a minute. The others belong to a suite, a study or a benchmark with a target
of its own, need the user's files, or need a GPU. test_docs.py parses all of them. Exit status 1 and
the output of each that failed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selfemo.corpora.registry import default_data_root

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "selfemo corpus check meld",
    "selfemo corpus stats meld --plot meld.png",
    "selfemo corpus overlap meld emorynlp",
    "bash examples/train_qwen3_8b.sh --dry-run",
    "selfemo plan --nodes 4 --model qwen3-4b parallel.tensor=2 "
    "train.dtype=bfloat16 rollout.dtype=bfloat16 --json",
    "selfemo plan --model qwen3-0.6b --nodes 1 --gpus-per-node 1 rollout.kv_cache_bytes=4000000000",
    "selfemo plan --config examples/configs/qwen3_8b.yaml --nodes 2 --gpus-per-node 8 --gpu h100-80g",
    "selfemo plan --accuracy",
    "selfemo eval --model runs/demo/model",
    "selfemo report runs/demo",
    "selfemo report runs/demo --gpu h100-80g",
    "selfemo flywheel list runs/demo",
    "selfemo flywheel show runs/demo 1",
    "python -m tools.kernels --traffic",
    "python -m tools.scaling --output /tmp/study --processes 0 --worlds 0",
)
TIMEOUT_S = 600


def main(run: Path) -> int:
    """Run all commands; returns the exit status."""
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    )
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for entry in ("examples", "tools", "selfemo", "kernels", "docs", "tests"):
            (place / entry).symlink_to(ROOT / entry)
        (place / "runs").mkdir()
        (place / "runs" / "demo").symlink_to(run.resolve())
        for command in COMMANDS:
            if "meld" in command and not (default_data_root() / "meld").is_dir():
                print(
                    f"skipped            {command} (no MELD at {default_data_root()}: set SELFEMO_DATA)",
                    flush=True,
                )
                continue
            assert re.search(rf"(?<![\w/-]){re.escape(command)}(?![\w/=-])", pages), f"no page has: {command}"
            failed += not succeeds(command, place)
    return 1 if failed else 0


def succeeds(command: str, place: Path) -> bool:
    """Run one command there, and print its outcome."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    started = time.monotonic()
    ended = subprocess.run(
        shlex.split(command),
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    verdict = f"status {ended.returncode}" if ended.returncode else "ok"
    print(f"{verdict:<9} {time.monotonic() - started:5.0f} s  {command}", flush=True)
    if ended.returncode:
        print(ended.stdout[-3000:] + ended.stderr[-3000:])
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
