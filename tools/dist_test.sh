#!/usr/bin/env bash
# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Test on several GPUs of this machine (or processes, where it has none):
#   tools/dist_test.sh CONFIG CKPT GPUS [flags of tools/test.py]
# Several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...) and
# MASTER_ADDR (the machine of rank 0) set; PORT must be free there.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CKPT GPUS [flags of tools/test.py]" >&2
    echo "environment: NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1" \
        "PORT=29500 PYTHON=python" >&2
    exit 2
fi
CONFIG=$1
CKPT=$2
GPUS=$3
TOOLS=$(cd "$(dirname "$0")" && pwd)

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$TOOLS/torchrun.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/test.py" "$CONFIG" "$CKPT" --launcher pytorch "${@:4}"
