"""Run the Python part of examples/train_qwen3_*.sh: torchrun runs it on every rank if it is given
such a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from selfemo.commands.main import main

DRY_RUN = "--dry-run"


def run_script(config: Path) -> None:
    """Run `selfemo train` under `config` with this process's arguments.

    The environment variable MODEL_DIR names another model, GPU the kind of GPU that a dry run plans
    for.
    """
    arguments = sys.argv[1:]
    model = [f"model.path={os.environ['MODEL_DIR']}"] if os.environ.get("MODEL_DIR") else []
    gpu: list[str] = []
    if DRY_RUN in arguments:
        if os.environ.get("RANK", "0") != "0":
            return  # one rank reports the messages that all ranks would repeat
        gpu = ["--gpu", os.environ.get("GPU", "h100-80g")]
    sys.argv = ["selfemo", "train", "--config", str(config), *gpu, *model, *arguments]
    main()
