#!/bin/sh
# Measure and train on a machine with one large GPU, in steps of under nine minutes:
#
#     benchmarks/h200.sh bench|paper|compact
#
# Say it again until it ends with "done": each step goes on where the one before stopped. It asks for
# nothing but PyTorch with torchvision; what else galsep needs is installed from the registry, or from
# WHEELS, a folder that `pip download` filled elsewhere. Variables, with their defaults:
#
#     PYTHON=python3      WORK=h200 (data, runs, results)       DEVICE=cuda     LIMIT=520 (seconds)
#     DATASET=$WORK/pairs or $WORK/varied, drawn where there is none, of N=20000 blends
#     WHEELS=             STEPS=50 (timed steps of bench)        EPOCHS, EPOCH_SIZE, BATCH_SIZE, INIT:
#                         those of the recipe; INIT=random where paper's COCO weights cannot be had
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
what=${1:?bench, paper or compact}
: "${PYTHON:=python3}" "${WORK:=h200}" "${DEVICE:=cuda}" "${LIMIT:=520}" "${N:=20000}" "${WHEELS:=}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
started=$(date +%s)
mkdir -p "$WORK"

# A bare machine keeps its own PyTorch: only what is missing beside it is installed.
"$PYTHON" - "$root/pyproject.toml" >"$WORK/missing.txt" <<'END'
import importlib.metadata, re, sys, tomllib

for wanted in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]:
    try:
        importlib.metadata.version(re.match(r"[\w-]+", wanted)[0])
    except importlib.metadata.PackageNotFoundError:
        print(wanted)
END
if [ -s "$WORK/missing.txt" ]; then
    "$PYTHON" -m pip install --quiet ${WHEELS:+--no-index --find-links "$WHEELS"} \
        -r "$WORK/missing.txt"
fi

# 124: the time is up; 130: galsep has been interrupted, and has left what --resume needs; 137: it
# did not end in time, and what --resume needs is that of the epoch before.
step() {
    code=0
    left=$((LIMIT - $(date +%s) + started))
    timeout -s INT -k 20 "$((left > 1 ? left : 1))" "$@" || code=$?
    case $code in
    0) echo "done" ;;
    124 | 130 | 137) echo "not done yet: say it again" ;;
    *) exit "$code" ;;
    esac
}

draw() { # DATASET OPTIONS...
    [ -f "$1/dataset.toml" ] || "$PYTHON" -m galsep simulate "$@" --n "$N" --quiet
}

run() { # RECIPE
    step "$PYTHON" -m galsep train "$DATASET" --output "$WORK/$1" --recipe "$1" --device "$DEVICE" \
        --resume ${EPOCHS:+--epochs "$EPOCHS"} ${EPOCH_SIZE:+--epoch-size "$EPOCH_SIZE"} \
        ${BATCH_SIZE:+--batch-size "$BATCH_SIZE"} ${INIT:+--init "$INIT"}
}

case $what in
bench)
    draw "${DATASET:=$WORK/pairs}"
    step "$PYTHON" "$root/benchmarks/train.py" --work "$WORK" --dataset "$DATASET" \
        --device "$DEVICE" --steps "${STEPS:-50}" --batch-size "${BATCH_SIZE:-64}"
    ;;
paper)
    draw "${DATASET:=$WORK/pairs}"
    run paper
    ;;
compact)
    draw "${DATASET:=$WORK/varied}" --galaxies 1-4 --stars 0.15 --max-mag 26.5 --seeing 0.5-1.3 \
        --pixel-scale 0.1-0.3 --varied --seed 11
    run compact
    ;;
*)
    echo "error: $what: bench, paper or compact" >&2
    exit 2
    ;;
esac
