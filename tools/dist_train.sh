#!/usr/bin/env bash
# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Train on several GPUs of this machine (or processes, where it has none):
#   tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# Several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...) and
# MASTER_ADDR (the machine of rank 0) set; PORT must be free there.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
    echo "environment: NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1" \
        "PORT=29500 PYTHON=python" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(cd "$(dirname "$0")" && pwd)

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
