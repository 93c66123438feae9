#!/usr/bin/env bash
# SFT, GRPO, SELF-GRPO and its ablations at equal budget over several seeds, with intervals; started again, it goes on where it was.
#   bash examples/study_cpu.sh [--seed 1] [--estimate] [--ask-test] [--test]
# --estimate prints the CPU minutes that are left; --test also evaluates the test split: once, when nothing will be changed any more.
# STUDY names another study (examples/configs/study_scarce.yaml: hours), OUT the directory (runs/ and the study's name: studies do not mix),
# AT_ONCE the runs side by side (2).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
study=${STUDY:-examples/configs/study_cpu.yaml}
cut=$(grep -om1 'runs/models/SmolLM2-cut[0-9]*' "$study" || true)
if [ -n "$cut" ]; then # its name says how many layers it has
    python -m tools.demo_model --layers "${cut##*cut}" --output "$cut"
elif grep -q 'model.path=runs/models/' "$study"; then
    python -m tools.demo_model
fi
exec python -m tools.study "$study" --output "${OUT:-runs/$(basename "$study" .yaml)}" --at-once "${AT_ONCE:-2}" "$@"
