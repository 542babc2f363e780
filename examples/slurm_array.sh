#!/bin/sh
#SBATCH --job-name=galsep
#SBATCH --array=0-99
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=3G
#SBATCH --time=01:00:00
# Deblend a survey as an array of a hundred jobs:
#
#     find survey -name '*.fits.fz' | sort > images.txt
#     sbatch examples/slurm_array.sh images.txt out
#
# or as the tasks of one allocation:
#
#     srun --ntasks=32 --cpus-per-task=2 --mem-per-cpu=3G examples/slurm_array.sh images.txt out
#
# Of n jobs, each takes every n-th image, so that neighbours in the list, which are alike, do not fall
# to one job. Submitted again, the array goes on where it was stopped.
set -eu
list=${1:?usage: slurm_array.sh LIST OUTPUT}
output=${2:?usage: slurm_array.sh LIST OUTPUT}
first=${SLURM_ARRAY_TASK_MIN:-0}
count=${SLURM_ARRAY_TASK_COUNT:-1}
if [ $((${SLURM_ARRAY_TASK_MAX:-0} - first + 1)) -ne "$count" ]; then
    echo "slurm_array.sh: --array has gaps, whose images no job would take; number without gaps" >&2
    exit 2
fi
# A job may start several tasks with srun; each is one of the n.
tasks=${SLURM_STEP_NUM_TASKS:-1}
n=$((count * tasks))
k=$(((${SLURM_ARRAY_TASK_ID:-0} - first) * tasks + ${SLURM_PROCID:-0}))
share=$(awk -v n="$n" -v k="$k" 'NF && $1 !~ /^#/ && images++ % n == k' "$list")
if [ -z "$share" ]; then
    echo "$list has fewer than $n images: none for this job"
    exit 0
fi
printf '%s\n' "$share" |
    galsep deblend - --output "$output" --skip-existing --jobs "${SLURM_CPUS_PER_TASK:-1}"
