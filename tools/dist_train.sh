#!/usr/bin/env bash
# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Train on several GPUs of this machine (or processes, where it has none):
#   tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# Several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...) and
# MASTER_ADDR (the machine of rank 0) set; PORT must be free there.
# MAX_RESTARTS=3 starts the processes again when one is lost, up to so many
# times, and each time they go on from the last checkpoint (--resume); NNODES
# may then be a range, such as 2:4. docs/distributed.md has examples.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
    echo "environment: NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1" \
        "PORT=29500 MAX_RESTARTS=0 PYTHON=python" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
NNODES=${NNODES:-1}
ADDRESS=${MASTER_ADDR:-127.0.0.1}
PORT=${PORT:-29500}
TOOLS=$(cd "$(dirname "$0")" && pwd)
FLAGS=("${@:3}")

if [ "${MAX_RESTARTS:-0}" != 0 ] || [[ $NNODES == *:* ]]; then
    # Machines find each other again after a restart, and may become fewer.
    LAUNCH=(--max_restarts="${MAX_RESTARTS:-0}" --rdzv_backend=c10d
        --rdzv_endpoint="$ADDRESS:$PORT" --rdzv_id="${RUN_ID:-us3l_mm}")
    if [[ " ${FLAGS[*]:-} " != *" --resume"* ]]; then
        FLAGS+=(--resume)
    fi
else
    LAUNCH=(--node_rank="${NODE_RANK:-0}" --master_addr="$ADDRESS"
        --master_port="$PORT")
fi

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$TOOLS/torchrun.py" \
    --nnodes="$NNODES" --nproc_per_node="$GPUS" "${LAUNCH[@]}" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch ${FLAGS[@]+"${FLAGS[@]}"}
