#!/bin/sh
# Fine-tune Mask R-CNN of the package for a survey with another seeing, and see whether it helped:
#
#     examples/fine_tune.sh FOLDER [BLENDS [EPOCHS [STAMPS]]]
#
# The defaults take some twenty minutes on two CPU cores.
set -e
folder=$1
blends=${2:-4000}
epochs=${3:-5}
stamps=${4:-4000}
galsep simulate "$folder/set" --n "$blends" --survey HSC --seeing 0.5-0.8 --galaxies 1-4 --seed 1
galsep train "$folder/set" --output "$folder/run" --init compact \
    --epochs "$epochs" --epoch-size "$stamps" --separation-epochs 0
galsep evaluate "$folder/set" --output "$folder/before" --no-baselines
galsep evaluate "$folder/set" --output "$folder/after" --no-baselines \
    --weights "$folder/run/weights.safetensors"
