# Sourced by the launch scripts: turns an environment of one node (plain or SLURM) into a torchrun call.
# Every node has an environment of Python 3.12 (or 3.13) on its PATH, installed as docs/gpu.md says.
#
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, GPUS_PER_NODE   the world; SLURM's variables stand in where they are not set
#   LOCAL_ADDR     this node's address, where its host name does not resolve for the others
#   RUN_ID         name of the rendezvous: agents that share it form one world
#   RENDEZVOUS_TIMEOUT_S   how long a node waits for the first one (300)
#   MAX_RESTARTS   how often torchrun starts the workers again after one has failed
#   MODEL_DIR      overrides model.path
#   GPU            the kind of GPU that a dry run plans for (h100-80g)

first_slurm_host() {
    scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1
}

# launch SCRIPT CONFIG [--dry-run] [override ...]
launch() {
    local script=$1 config=$2
    shift 2
    local nnodes=${NNODES:-${SLURM_NNODES:-1}}
    local node_rank=${NODE_RANK:-${SLURM_NODEID:-0}}
    local slurm_gpus=${SLURM_GPUS_PER_NODE:-8} # "8", or "h100:8"
    local gpus_per_node=${GPUS_PER_NODE:-${slurm_gpus##*:}}
    local master_port=${MASTER_PORT:-29500}
    local master_addr=${MASTER_ADDR:-}
    if [ -z "$master_addr" ]; then
        if [ -n "${SLURM_JOB_NODELIST:-}" ]; then master_addr=$(first_slurm_host); else master_addr=127.0.0.1; fi
    fi
    local dry_run= overrides=() argument
    for argument in "$@"; do
        if [ "$argument" = --dry-run ]; then dry_run=yes; else overrides+=("$argument"); fi
    done
    local check=(selfemo train --dry-run --nodes "$nnodes" --processes-per-node "$gpus_per_node" --config "$config"
        ${MODEL_DIR:+"model.path=$MODEL_DIR"})
    if [ -n "$dry_run" ]; then
        exec "${check[@]}" --gpu "${GPU:-h100-80g}" "${overrides[@]}"
    fi
    # What is wrong with the input is told in one line and exit status 2, before torchrun would wrap it in a traceback.
    # A node other than the first may join a world that is alive, so its check does not stop at a live run.
    GROUP_RANK=$node_rank "${check[@]}" "${overrides[@]}" || exit

    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}                         # torchrun's default is 1, which starves the tokenizer
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # Megatron orders tensor-parallel communication by it
    # A world that forms again must not meet in the store of the one before: its addresses are there still (torch 2.13 keeps the server).
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    # Node 0 hosts the rendezvous, whatever its host name resolves to; the others wait for it.
    local is_host=0
    if [ "$node_rank" = 0 ]; then is_host=1; fi
    # SIGUSR1 (SLURM's, before a time limit) and SIGTERM ask the ranks to write a checkpoint and end with status 0. SLURM sends them to every
    # process of a step: torchrun is started with both ignored, since it would die of the one and tear its ranks down for the other,
    # and this shell passes on what reaches it alone (docker stop).
    trap '' USR1 TERM
    torchrun --nnodes "$nnodes" --node-rank "$node_rank" --nproc-per-node "$gpus_per_node" --max-restarts "${MAX_RESTARTS:-3}" \
        --signals-to-handle SIGINT,SIGHUP,SIGQUIT ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} \
        --rdzv-conf "is_host=$is_host,read_timeout=${RENDEZVOUS_TIMEOUT_S:-300}" \
        --rdzv-backend c10d --rdzv-id "${RUN_ID:-${SLURM_JOB_ID:-selfemo}}" --rdzv-endpoint "$master_addr:$master_port" \
        "$script" "${overrides[@]}" &
    local torchrun_pid=$! status=0
    trap 'kill -USR1 $(cat "/proc/$torchrun_pid/task/$torchrun_pid/children") || true' USR1 TERM
    # A signal ends `wait` early: wait again while torchrun lives.
    while wait "$torchrun_pid" || status=$?; kill -0 "$torchrun_pid" 2>/dev/null; do status=0; done
    return "$status"
}
