# shellcheck shell=bash
# What the job scripts share. They are submitted from the repository's root and source this file from there.
set -euo pipefail

# The environment that make set up; or load yours before sbatch, which passes it on.
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun no longer takes it from the job by itself
# Where the processes meet, unless you said so: this is the job's first node. kunet takes a port of this job and attempt.
address=$(scontrol -o show node "$SLURMD_NODENAME" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR="${MASTER_ADDR:-$address}"

# train RUN OPTIONS: `kunet train` in that folder, one process a task of the job; then `again`. Started again, the job
# leaves a run that is done alone: newer SLURMs put a pre-empted job back even when its script has done so too.
train() {
  local run=$1 before code=0
  shift
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && grep -qs '^done' "$run/status"; then exit 0; fi
  before=$(step "$run")
  srun --kill-on-bad-exit=1 kunet train --out "$run" "$@" || code=$?
  again "$run" "$before" "$code"
}

# step RUN: the step of its last checkpoint, 0 in a new run.
step() {
  local word=new at=0
  [ ! -f "$1/status" ] || read -r word at <"$1/status"
  echo "$at"
}

# again RUN STEP CODE: end well when the run is done; go back into the queue when it was stopped before its end.
# What tells is the run's folder: exit codes are changed on the way through srun. A job that got no further than STEP,
# where it began, goes back once, and then no more.
again() {
  local run=$1 before=$2 code=$3 word=new at=0
  [ ! -f "$run/status" ] || read -r word at <"$run/status"
  case $word in
  done) exit 0 ;;
  failed) exit "$((code ? code : 1))" ;;
  esac
  if [ "$at" -gt "$before" ] || [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then
    echo "$run: stopped at step $at; back into the queue"
    requeue
  fi
  echo "$run: stopped at step $at, no further than where it began; not back into the queue" >&2
  exit "$((code ? code : 1))"
}

# requeue: put this job back into the queue, which ends this script.
requeue() {
  local task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # an array's bare number is all its tasks
  scontrol requeue "${task:-$SLURM_JOB_ID}"
  sleep 120
}
