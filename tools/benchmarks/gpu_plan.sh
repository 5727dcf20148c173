#!/usr/bin/env bash
# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# All that has to be measured on a GPU, in pieces of less than eight minutes:
#   tools/benchmarks/gpu_plan.sh OUT [--tiny] [--data DATA] [PIECE...]
# Each piece leaves OUT/<piece>.log, figures OUT/<piece>.json, and when it has
# succeeded OUT/<piece>.done; the next run leaves it out. Without a PIECE all of
# them run. DATA is CIFAR-10: a folder of images, or an .npz file that
# tools/dataset_converters/npz_to_folder.py reads; the environment variable DATA
# does the same. Each run goes on with the pre-training where the last one
# ended. --tiny has tiny networks and few rounds, for machines without a GPU.
set -uo pipefail

PIECES=(tests cifar cifar-bfloat16 cifar-views cifar-compile
    in1k in1k-bfloat16 in1k-views in1k-compile floor plain lightly pretrain)
usage() {
    echo "usage: $0 OUT [--tiny] [--data DATA] [PIECE...]" >&2
    echo "pieces: ${PIECES[*]}" >&2
    echo "environment: DATA= LIMIT=470 (seconds of a piece) PYTHON=python" >&2
    exit 2
}

TOOLS=$(cd "$(dirname "$0")/.." && pwd)
ROOT=$(dirname "$TOOLS")
PYTHON=${PYTHON:-python}
LIMIT=${LIMIT:-470}
DATA=${DATA:-}
OUT='' TINY='' CHOSEN=()
while [ $# -gt 0 ]; do
    case $1 in
        --tiny) TINY=1 ;;
        --data)
            [ $# -ge 2 ] || usage
            DATA=$2
            shift
            ;;
        -*) usage ;;
        *) if [ -z "$OUT" ]; then OUT=$1; else CHOSEN+=("$1"); fi ;;
    esac
    shift
done
[ -n "$OUT" ] || usage
for piece in ${CHOSEN[@]+"${CHOSEN[@]}"}; do
    if [[ " ${PIECES[*]} " != *" $piece "* ]]; then
        echo "$0: there is no piece $piece; there are ${PIECES[*]}." >&2
        exit 2
    fi
done
if [ -n "$DATA" ] && [ ! -e "$DATA" ]; then
    echo "$0: --data $DATA: there is no such file or folder." >&2
    exit 2
fi
mkdir -p "$OUT" || exit 2

export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
CIFAR=$ROOT/configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10
IN1K=$ROOT/configs/us3l/us3l_resnet50_8xb256-coslr-100e_in1k.py
WORKERS=$(nproc)
SETTINGS=(--settings float32+channels-first float32 amp+channels-first amp)
BFLOAT16=(--settings float32 bfloat16+channels-first bfloat16)
VIEWS=(--settings amp+per-image amp+batched)
COMPILED=(--settings amp amp+compile amp+cuda-graphs)
BATCH_CIFAR=512 # of the recipe, 4 x 128
BATCH_IN1K=256
ROUNDS=(--rounds 3 --iterations 4)
CIFAR_OPTIONS=(train_dataloader.num_workers="$WORKERS")
IN1K_OPTIONS=(train_dataloader.num_workers="$WORKERS")
EPOCHS=400
if [ -n "$TINY" ]; then
    SETTINGS=(--settings float32+channels-first amp)
    COMPILED=(--settings amp amp+compile --widths 1.0)
    BATCH_CIFAR=4 BATCH_IN1K=2 EPOCHS=1
    ROUNDS=(--rounds 1 --iterations 1)
    tiny=(train_dataloader.num_workers=0 model.backbone.base_channels=16
        model.backbone.stem_channels=16 model.neck.hid_channels=16)
    CIFAR_OPTIONS=("${tiny[@]}" model.neck.in_channels=128)
    IN1K_OPTIONS=("${tiny[@]}" model.neck.in_channels=512)
fi

throughput() { # PIECE CONFIG FLAG...
    "$PYTHON" "$TOOLS/benchmarks/throughput.py" --config "$2" --synthetic \
        --json "$OUT/$1.json" "${ROUNDS[@]}" "${@:3}"
}
on_cifar() { # PIECE FLAG...
    throughput "$1" "$CIFAR.py" --batch-size $BATCH_CIFAR \
        --cfg-options "${CIFAR_OPTIONS[@]}" "${@:2}"
}
on_in1k() { # PIECE FLAG...
    throughput "$1" "$IN1K" --batch-size $BATCH_IN1K \
        --cfg-options "${IN1K_OPTIONS[@]}" "${@:2}"
}

images() { # prints the folder of the training images of DATA
    local folder=$DATA
    if [ -f "$DATA" ]; then
        folder=$OUT/images
        if [ ! -d "$folder" ]; then
            rm -rf "$folder.partial"
            "$PYTHON" "$TOOLS/dataset_converters/npz_to_folder.py" "$DATA" \
                "$folder.partial" >&2 && mv "$folder.partial" "$folder" ||
                return 1
        fi
    fi
    if [ -d "$folder/train" ]; then folder=$folder/train; fi
    echo "$folder"
}

run_piece() { # PIECE
    local folder
    case $1 in
        tests)
            (cd "$ROOT" && "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider \
                tests/test_gpu.py tests/test_mmcv_ops.py)
            ;;
        cifar) on_cifar "$1" "${SETTINGS[@]}" ;;
        cifar-bfloat16) on_cifar "$1" "${BFLOAT16[@]}" ;;
        cifar-views) on_cifar "$1" "${VIEWS[@]}" ;;
        cifar-compile) on_cifar "$1" "${COMPILED[@]}" ;;
        in1k) on_in1k "$1" "${SETTINGS[@]}" ;;
        in1k-bfloat16) on_in1k "$1" "${BFLOAT16[@]}" ;;
        in1k-views) on_in1k "$1" "${VIEWS[@]}" ;;
        in1k-compile) on_in1k "$1" "${COMPILED[@]}" ;;
        floor | plain | lightly)
            on_cifar "$1" "${SETTINGS[@]}" --against "$1"
            ;;
        pretrain)
            folder=$(images) || return 1
            "$PYTHON" "$TOOLS/train.py" "$CIFAR-folder.py" --amp --resume \
                --work-dir "$OUT/pretrain" --cfg-options \
                "${CIFAR_OPTIONS[@]}" \
                train_dataloader.batch_size=$BATCH_CIFAR \
                train_dataloader.dataset.data_root="$folder" \
                train_cfg.max_epochs=$EPOCHS default_hooks.checkpoint.interval=5
            ;;
    esac
}

# What timeout starts is this script, for one piece.
if [ -n "${GPU_PLAN_PIECE:-}" ]; then
    run_piece "$GPU_PLAN_PIECE"
    exit
fi
if [ ${#CHOSEN[@]} -eq 0 ]; then CHOSEN=("${PIECES[@]}"); fi
failed=0
for piece in "${CHOSEN[@]}"; do
    if [ -e "$OUT/$piece.done" ]; then
        echo "$piece: done before"
    elif [ "$piece" = pretrain ] && [ -z "$DATA" ]; then
        echo "$piece: left out, as there is no --data"
    elif [ "$piece" = lightly ] &&
        ! "$PYTHON" -c 'import lightly' 2>/dev/null; then
        echo "$piece: left out, as lightly is not installed"
    else
        start=$SECONDS
        GPU_PLAN_PIECE=$piece timeout --signal=INT --kill-after=20 "$LIMIT" \
            bash "$0" "$OUT" ${TINY:+--tiny} ${DATA:+--data "$DATA"} \
            >"$OUT/$piece.log" 2>&1
        code=$?
        seconds=$((SECONDS - start))
        if [ $code -eq 0 ]; then
            touch "$OUT/$piece.done"
            echo "$piece: done, $seconds s"
        elif [ $code -eq 124 ] && [ "$piece" = pretrain ]; then
            echo "$piece: goes on in the next run, $seconds s"
        else
            echo "$piece: failed with $code, $seconds s; see $OUT/$piece.log"
            failed=1
        fi
    fi
done
exit $failed
