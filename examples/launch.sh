#!/bin/bash
# Starts the ranks of a preset: `launch.sh PRESET [flags]`. The presets' shell half ends here; docs/clusters.md has the reasons.
file=$1
shift
root=$(dirname "$file")/..
command -v deepspeed >/dev/null || PATH=$root/.venv/bin:$PATH
command -v deepspeed >/dev/null || { echo "megasink: no deepspeed on PATH; bash tools/setup_env.sh makes .venv" >&2; exit 2; }
if [ -n "$RANK" ]; then exec python -u "$file" "$@"; fi  # a launcher started this shell as one rank
if [ -n "$SLURM_JOB_ID" ]; then
  [ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun no longer takes sbatch's
  srun --kill-on-bad-exit=1 python -u "$file" "$@"
  code=$?
  # stopped on request, or broken by a node: the job goes on later (docs/fault-tolerance.md); scancel without --signal ends it
  case $code in 75 | 76) scontrol requeue "$SLURM_JOB_ID" ;; esac
  exit $code
fi
exec deepspeed -q ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} ${MASTER_PORT:+--master_port "$MASTER_PORT"} "$file" "$@"
