#!/bin/bash
# A suite on a SLURM cluster: each task of an array runs its part into one folder that all nodes share.
#
#   sbatch --array=1-8 scripts/slurm.sh SUITE OUT [options of `sparsebench run`]
#
# Parts are by id, baselines with their cells, so no two tasks share a cell. Two minutes before its time is up a task is
# told to stop: it finishes the cell in flight and is queued again, and goes on where it stopped. To run some parts of
# eight again, say how many there are: PARTS=8 sbatch --array=3,5 ...
#SBATCH --job-name=sparsebench
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=INT@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sparsebench-%A-%a.log
set -uo pipefail
suite=${1:?name a suite}
out=${2:?name a folder that all nodes share}
shift 2
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8}
srun sparsebench run "$suite" --out "$out" --shard "$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}" --no-site "$@"
code=$?
if [[ $code == 130 ]]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit $code
