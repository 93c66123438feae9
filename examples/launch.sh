# Sourced by the launch scripts: turns an environment of one node (plain or SLURM) into a torchrun call.

first_slurm_host() {
    scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1
}

# launch SCRIPT CONFIG [--dry-run] [override ...]
launch() {
    local script=$1 config=$2
    shift 2
    local nnodes=${NNODES:-${SLURM_NNODES:-1}}
    local node_rank=${NODE_RANK:-${SLURM_NODEID:-0}}
    local gpus_per_node=${GPUS_PER_NODE:-8}
    local master_port=${MASTER_PORT:-29500}
    local master_addr=${MASTER_ADDR:-}
    if [ -z "$master_addr" ]; then
        if [ -n "${SLURM_JOB_NODELIST:-}" ]; then master_addr=$(first_slurm_host); else master_addr=127.0.0.1; fi
    fi
    if [ "${1:-}" = --dry-run ]; then
        shift
        exec selfemo train --dry-run --nodes "$nnodes" --processes-per-node "$gpus_per_node" --gpu "${GPU:-h100-80g}" \
            --config "$config" ${MODEL_DIR:+"model.path=$MODEL_DIR"} "$@"
    fi
    exec torchrun --nnodes "$nnodes" --node-rank "$node_rank" --nproc-per-node "$gpus_per_node" --max-restarts "${MAX_RESTARTS:-0}" \
        --rdzv-backend c10d --rdzv-id "${RUN_ID:-${SLURM_JOB_ID:-selfemo}}" --rdzv-endpoint "$master_addr:$master_port" "$script" "$@"
}
