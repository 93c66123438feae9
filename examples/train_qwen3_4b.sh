#!/usr/bin/env bash
""":"
# SELF-GRPO on Qwen3-4B. This file is a shell script and a Python program at once, so that both of these work:
#
#   torchrun --nnodes N --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/train_qwen3_4b.sh [override ...]
#   bash examples/train_qwen3_4b.sh [--dry-run] [override ...]
#
# (With --max-restarts above 0, torchrun needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node, as examples/launch.sh says.)
# As a shell script it checks the whole configuration, then calls torchrun itself, with NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT and
# GPUS_PER_NODE from the environment, or from SLURM's (examples/launch.sh has them all). --dry-run checks, prints the plan and stops.
# Settings stand, with their reasons, in examples/configs/qwen3_4b.yaml; MODEL_DIR names the Hugging Face directory to start from.
. "$(dirname "$0")/launch.sh"
launch "$0" "$(dirname "$0")/configs/qwen3_4b.yaml" "$@"
exit
":"""
from pathlib import Path

from selfemo.commands.launch_script import run_script

if __name__ == "__main__":
    run_script(Path(__file__).resolve().parent / "configs" / "qwen3_4b.yaml")
