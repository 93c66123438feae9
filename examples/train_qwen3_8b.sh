#!/usr/bin/env bash
""":"
# SELF-GRPO on Qwen3-8B. This file is a shell script and a Python program at once, so that both of these work:
#
#   torchrun --nnodes N --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/train_qwen3_8b.sh [override ...]
#   bash examples/train_qwen3_8b.sh [--dry-run] [override ...]
#
# As a shell script it calls torchrun itself, with NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT and GPUS_PER_NODE from the
# environment, or from SLURM's. --dry-run checks the whole configuration, prints the plan and stops. Settings stand, with their
# reasons, in examples/configs/qwen3_8b.yaml; MODEL_DIR names the Hugging Face directory to start from.
. "$(dirname "$0")/launch.sh"
launch "$0" "$(dirname "$0")/configs/qwen3_8b.yaml" "$@"
exit
":"""
import os
import sys
from pathlib import Path

from selfemo.cli import main

if __name__ == "__main__":
    config = Path(__file__).resolve().parent / "configs" / "qwen3_8b.yaml"
    model = [f"model.path={os.environ['MODEL_DIR']}"] if os.environ.get("MODEL_DIR") else []
    sys.argv = ["selfemo", "train", "--config", str(config), *model, *sys.argv[1:]]
    main()
