#!/bin/sh
# Measure and train on a machine with one large GPU, in steps of under nine minutes:
#
#     benchmarks/h200.sh bench|deblend|paper|compact
#
# Say it again until it ends with "done": each step goes on where the one before stopped, training
# with the epoch that it was in. It asks for nothing but PyTorch with torchvision; what else galsep
# needs is installed from the registry, or from WHEELS, a folder that `pip download --no-deps` filled
# elsewhere. Where DATASET is there already, GalSim is not needed. Variables, with their defaults:
#
#     PYTHON=python3      WORK=h200 (data, runs, results)       DEVICE=cuda     LIMIT=520 (seconds)
#     DATASET=$WORK/pairs or $WORK/varied, drawn where there is none, of N=20000 blends
#     WHEELS=             STEPS=50 (timed steps of bench)        BATCH_SIZE
#     SIDE=20000 (pixels along each axis of the field of deblend)
#     EPOCHS, EPOCH_SIZE, SEPARATION_EPOCHS, INIT: those of the recipe. Smaller epochs shorten paper
#                         with all its stages, fewer cut off the last ones; INIT=FILE.pth or
#                         INIT=random where COCO's weights cannot be downloaded
#
# What was trained is judged on the test split: $WORK/paper-report, $WORK/compact-report.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
what=${1:-}
: "${PYTHON:=python3}" "${WORK:=h200}" "${DEVICE:=cuda}" "${LIMIT:=520}" "${N:=20000}" "${WHEELS:=}"
case $what in
bench | deblend | paper) : "${DATASET:=$WORK/pairs}" ;;
compact) : "${DATASET:=$WORK/varied}" ;;
*)
    echo "error: $what: bench, deblend, paper or compact" >&2
    exit 2
    ;;
esac
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
started=$(date +%s)
mkdir -p "$WORK"
drawn=$([ -f "$DATASET/dataset.toml" ] && echo yes || echo no)

# A bare machine keeps its own PyTorch: only what is missing beside it, or too old, is installed.
"$PYTHON" - "$root/pyproject.toml" "$drawn" "$WORK" <<'END'
import importlib.metadata, pathlib, sys, tomllib

from packaging.requirements import Requirement

OWN = {"torch", "torchvision"}
TO_DRAW = {"galsim", "surveycodex"}
TO_JUDGE = {"jinja2", "photutils", "pycocotools", "scikit-image"}


def missing(wanted):
    try:
        return not wanted.specifier.contains(importlib.metadata.version(wanted.name), True)
    except importlib.metadata.PackageNotFoundError:
        return True


file, drawn, work = sys.argv[1:]
listed = tomllib.load(open(file, "rb"))["project"]["dependencies"]
absent = [one for one in map(Requirement, listed) if one.name not in OWN and missing(one)]
later = TO_JUDGE | (TO_DRAW if drawn == "yes" else set())
for name, chosen in (
    ("needed", [str(one) for one in absent if one.name not in later]),
    ("to-judge", [str(one) for one in absent if one.name in TO_JUDGE]),
):
    pathlib.Path(work, f"{name}.txt").write_text("".join(f"{one}\n" for one in chosen))
END

install() { # FILE
    [ ! -s "$1" ] || "$PYTHON" -m pip install --quiet \
        ${WHEELS:+--no-index --find-links "$WHEELS"} -r "$1"
}

# 124: the time is up; 130: galsep has been interrupted, and has left what --resume needs; 137: it
# did not end in time, and what --resume needs is that of the epoch before.
step() {
    code=0
    left=$((LIMIT - $(date +%s) + started))
    timeout -s INT -k 20 "$((left > 1 ? left : 1))" "$@" || code=$?
    case $code in
    0) ;;
    124 | 130 | 137)
        echo "not done yet: say it again"
        return 1
        ;;
    *) exit "$code" ;;
    esac
}

draw() { # OPTIONS...
    [ "$drawn" = yes ] || step "$PYTHON" -m galsep simulate "$DATASET" "$@" --n "$N" --quiet || exit 0
}

epochs() { # RUN
    cat "$1/metrics.csv" "$1/separation_metrics.csv" 2>/dev/null | wc -l
}

progress() { # RUN
    "$PYTHON" - "$1" <<'END'
import csv, pathlib, sys, tomllib

run = pathlib.Path(sys.argv[1])
for name, prefix, setting in (
    ("Mask R-CNN", "", "epochs"), ("separation network", "separation_", "separation_epochs")
):
    file = run / f"{prefix}metrics.csv"
    if not file.is_file():
        continue
    rows = list(csv.DictReader(file.open()))
    promised = tomllib.loads((run / "config.toml").read_text())[setting]
    minutes = sum(float(row["seconds"]) for row in rows) / len(rows) / 60
    f1 = f", F1 {float(rows[-1]['validation_f1']):.3f}" if "validation_f1" in rows[-1] else ""
    print(
        f"{name}: {len(rows)} of {promised} epochs, {minutes:.2f} min an epoch, "
        f"{minutes * promised:.0f} min for all, {float(rows[-1]['images_per_second']):.0f} "
        f"images/s{f1}"
    )
END
}

run() { # RECIPE
    output=$WORK/$1
    before=$(epochs "$output")
    begun=$(date +%s)
    if step "$PYTHON" -m galsep train "$DATASET" --output "$output" --recipe "$1" \
        --device "$DEVICE" --resume ${EPOCHS:+--epochs "$EPOCHS"} \
        ${EPOCH_SIZE:+--epoch-size "$EPOCH_SIZE"} ${BATCH_SIZE:+--batch-size "$BATCH_SIZE"} \
        ${SEPARATION_EPOCHS:+--separation-epochs "$SEPARATION_EPOCHS"} ${INIT:+--init "$INIT"}; then
        progress "$output"
        judge "$1"
    else
        progress "$output"
        if [ "$(epochs "$output")" -le "$before" ] && [ $((begun - started)) -lt $((LIMIT / 2)) ]; then
            echo "error: no epoch ended in time: remove $output, and give a smaller EPOCH_SIZE" >&2
            exit 1
        fi
    fi
}

judge() { # RECIPE
    if [ ! "$WORK/$1-report/metrics.json" -nt "$WORK/$1/weights.safetensors" ]; then
        install "$WORK/to-judge.txt" || {
            echo "done, but not judged: galsep evaluate needs what is in $WORK/to-judge.txt"
            return
        }
        step "$PYTHON" -m galsep evaluate "$DATASET" --output "$WORK/$1-report" \
            --weights "$WORK/$1/weights.safetensors" --device "$DEVICE" --overwrite || return 0
    fi
    echo "done"
}

install "$WORK/needed.txt"
case $what in
bench)
    draw
    step "$PYTHON" "$root/benchmarks/train.py" --work "$WORK" --dataset "$DATASET" \
        --device "$DEVICE" --steps "${STEPS:-50}" --batch-size "${BATCH_SIZE:-64}" || exit 0
    echo "done"
    ;;
deblend)
    step "$PYTHON" "$root/benchmarks/deblend.py" --alone --device "$DEVICE" --cores 0 \
        --side "${SIDE:-20000}" --runs 1 --folder "$WORK" || exit 0
    echo "done"
    ;;
paper)
    draw
    run paper
    ;;
compact)
    draw --galaxies 1-4 --stars 0.15 --max-mag 26.5 --seeing 0.5-1.3 --pixel-scale 0.1-0.3 --varied \
        --seed 11
    run compact
    ;;
esac
