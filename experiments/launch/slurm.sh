#!/bin/bash
# One run on several nodes under Slurm, one task for each GPU:
#
#   sbatch experiments/launch/slurm.sh RUN [flags of swax train]
#
# RUN is the run folder, on a file system that all nodes see. Options of sbatch stand
# over those below. The job saves and goes back into the queue when its time is nearly
# up or when it is preempted, and goes on from its newest checkpoint when it starts
# again. What the settings mean: experiments/launch/README.md.

#SBATCH --job-name=swax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u
if (($# < 1)); then
  echo "usage: sbatch $0 RUN [flags of swax train]" >&2
  exit 2
fi
run=$1
shift

export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

resume=()
if [[ -e $run/config.json ]]; then # a job that was requeued, or sent again
  resume=(--resume)
fi

# Not in quotes: a command may be several words, such as `apptainer exec IMAGE swax`.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=1 ${SWAX:-swax} train --out "$run" "${resume[@]}" "$@"
code=$?

# 143 is SIGTERM: all processes have saved the same step and left.
if ((code == 143 && ${SLURM_RESTART_COUNT:-0} < ${MOST_REQUEUES:-100})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
