#!/usr/bin/env bash
# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Test as a Slurm job:
#   tools/slurm_test.sh PARTITION JOB_NAME CONFIG CKPT [flags of test.py]
# GPUS in all, GPUS_PER_NODE of them on a node.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CKPT" \
        "[flags of tools/test.py]" >&2
    echo "environment: GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5" \
        "SRUN_ARGS= PYTHON=python" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
CKPT=$4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
TOOLS=$(cd "$(dirname "$0")" && pwd)

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
# SRUN_ARGS holds several words.
# shellcheck disable=SC2086
exec srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres=gpu:"$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$TOOLS/test.py" "$CONFIG" "$CKPT" \
    --launcher slurm "${@:5}"
