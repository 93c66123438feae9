# Sourced by the launch scripts: turns an environment of one node (plain, SLURM or Kubernetes) into a torchrun call.
# Every node has an environment of Python 3.12 (or 3.13) on its PATH, installed as docs/gpu.md says.
#
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, GPUS_PER_NODE   the world; SLURM's variables, or those of Kubeflow's PyTorchJob or TrainJob,
#                                                                stand in where they are not set
#   LOCAL_ADDR     this node's address, where its host name does not resolve for the others
#   RUN_ID         name of the rendezvous: agents that share it form one world
#   RENDEZVOUS_TIMEOUT_S   how long a node waits for the first one (300)
#   MAX_RESTARTS   how often torchrun starts the workers again after one has failed
#   MODEL_DIR      overrides model.path
#   GPU            the kind of GPU that a dry run plans for (h100-80g)

# The first host of a SLURM node list such as node[01-04,7],gpu3. Not by scontrol, which few containers have.
first_slurm_host() {
    sed -E 's/\[([0-9]+)[^]]*\]/\1/g; s/,.*//' <<< "$1"
}

# The number of GPUs in SLURM's words for them: 8, h100:8, h100:8(S:0-1), a100:2,h100:2
slurm_gpus() {
    local sum
    sum=$(sed -E 's/\([^)]*\)//g; s/[^,]*://g; s/,/+/g' <<< "$1")
    # 10#: bash takes 08 for octal, and wraps numbers of twenty digits.
    if [[ $sum =~ ^[0-9]{1,9}(\+[0-9]{1,9})*$ ]]; then echo $((10#${sum//+/+10#})); else printf '%s\n' "$1"; fi
}

# refuse_unless_number VARIABLE VALUE
refuse_unless_number() {
    if [[ ! $2 =~ ^[0-9]{1,9}$ ]]; then
        printf 'selfemo: %s=%q: expected a whole number: set %s\n' "$1" "$2" "$1" >&2
        exit 2
    fi
}

# launch SCRIPT CONFIG [--dry-run] [override ...]
launch() {
    local script=$1 config=$2
    shift 2
    # PyTorchJob gives every pod its number in RANK, and the number of pods in WORLD_SIZE or, if it counts processes there, in PET_NNODES.
    local pods= pod=
    if [ -n "${RANK:-}" ] && [ -n "${WORLD_SIZE:-}" ]; then pods=$WORLD_SIZE pod=$RANK; fi
    # Of SLURM's variables, those of the step come first: srun may start it on some nodes of the job alone.
    local nnodes=${NNODES:-${PET_NNODES:-${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-${pods:-1}}}}}
    local node_list=${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}}
    local node_rank=${NODE_RANK:-${PET_NODE_RANK:-${SLURM_NODEID:-${pod:-0}}}}
    # SLURM_GPUS_ON_NODE is what a job has got, SLURM_GPUS_PER_NODE what one option has asked for.
    local gpus_per_node=${GPUS_PER_NODE:-${PET_NPROC_PER_NODE:-}}
    gpus_per_node=${gpus_per_node:-$(slurm_gpus "${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-8}}")}
    local master_port=${MASTER_PORT:-${PET_MASTER_PORT:-29500}}
    refuse_unless_number NNODES "$nnodes"
    refuse_unless_number NODE_RANK "$node_rank"
    refuse_unless_number GPUS_PER_NODE "$gpus_per_node"
    refuse_unless_number MASTER_PORT "$master_port"
    local master_addr=${MASTER_ADDR:-${PET_MASTER_ADDR:-}}
    if [ "$nnodes" != 1 ] && [ -z "$master_addr" ] && [ -n "$node_list" ]; then
        master_addr=$(first_slurm_host "$node_list")
    fi
    local tasks=${SLURM_STEP_NUM_TASKS:-1}
    # An interactive step (srun --pty) has one shell, whatever its number of tasks.
    if [[ $tasks =~ ^[0-9]+$ ]] && [ -z "${NNODES:-}${SLURM_PTY_PORT:-}" ] && [ "$tasks" -gt "$nnodes" ]; then
        echo "selfemo: $tasks tasks on $nnodes nodes, and each would start torchrun: expected one task per node, srun --ntasks-per-node=1" >&2
        exit 2
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
    if [ "$nnodes" != 1 ] && [ -z "$master_addr" ]; then
        echo "selfemo: $nnodes nodes, and no address of the first: set MASTER_ADDR" >&2
        exit 2
    fi
    # A node other than the first may join a world that is alive, so its check does not stop at a live run.
    GROUP_RANK=$node_rank "${check[@]}" "${overrides[@]}" || exit

    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}                         # torchrun's default is 1, which starves the tokenizer
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # Megatron orders tensor-parallel communication by it
    # Memory that a finished step leaves in pieces goes back whole to the engine as it wakes; vLLM switches this off inside its own pool.
    export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
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
        --rdzv-backend c10d --rdzv-id "${RUN_ID:-${SLURM_JOB_ID:-selfemo}}" --rdzv-endpoint "${master_addr:-127.0.0.1}:$master_port" \
        "$script" "${overrides[@]}" &
    local torchrun_pid=$! status=0
    trap 'kill -USR1 $(cat "/proc/$torchrun_pid/task/$torchrun_pid/children") || true' USR1 TERM
    # A signal ends `wait` early: wait again while torchrun lives.
    while wait "$torchrun_pid" || status=$?; kill -0 "$torchrun_pid" 2>/dev/null; do status=0; done
    return "$status"
}
