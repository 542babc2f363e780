#!/bin/sh
#SBATCH --job-name=galsep
#SBATCH --array=0-99
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
# Deblend a survey as an array of a hundred jobs:
#
#     find survey -name '*.fits.fz' | sort > images.txt
#     sbatch examples/slurm_array.sh images.txt out
#
# Job k takes every hundredth image from the k-th on, so that neighbours in the list, which are alike,
# do not fall to one job. A job that was stopped goes on where it ended when it is submitted again.
set -e
list=$1
output=$2
jobs=${SLURM_ARRAY_TASK_COUNT:-1}
awk -v jobs="$jobs" -v job="${SLURM_ARRAY_TASK_ID:-0}" 'NR % jobs == (job + 1) % jobs' "$list" |
    galsep deblend - --output "$output" --skip-existing --jobs "${SLURM_CPUS_PER_TASK:-1}"
