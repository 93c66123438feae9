#!/usr/bin/env bash
# The whole method on one machine without a GPU: SFT start, self-play, SELF-GRPO, weight sync, evaluation, export.
#   bash examples/quickstart_cpu.sh [override ...]        e.g. iterations=4 sft.steps=40
# RUN_DIR names the output directory, NPROC the processes (2), CONFIG another configuration; that one brings its own model.
set -euo pipefail
cd "$(dirname "$0")/.."
nproc_per_node=${NPROC:-2}
config=${CONFIG:-examples/configs/quickstart_cpu.yaml}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one thread per process: two processes fill two cores
settings=(--config "$config" "output_dir=${RUN_DIR:-runs/demo}" "$@")

if [[ $config == examples/configs/quickstart_cpu.yaml ]]; then
    python -m tools.demo_model # SmolLM2-135M-Instruct, where the configuration expects it
fi
# What is wrong with the input is told in one line and exit status 2, before torchrun would wrap it in a traceback.
selfemo train --dry-run --processes-per-node "$nproc_per_node" "${settings[@]}"
torchrun --standalone --nproc-per-node "$nproc_per_node" --no-python selfemo train "${settings[@]}"
