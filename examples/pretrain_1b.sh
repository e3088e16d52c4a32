#!/bin/bash
#SBATCH --job-name=pretrain_1b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
""":"
# Starts the run of pretrain_1b.yaml:  deepspeed FILE [flags]  |  bash FILE [flags]  |  sbatch FILE [flags]  |  torchrun FILE [flags]
# This half is for bash and sbatch; to Python it is a string. No backslash and no triple quote in here.
file=$0
[ -f "$(dirname "$0")/pretrain_1b.yaml" ] || file=$SLURM_SUBMIT_DIR/examples/pretrain_1b.sh  # sbatch runs a copy of this file
[ -f "$file" ] || { echo "megasink: no $file; submit from the top of the repository" >&2; exit 2; }
command -v deepspeed >/dev/null || PATH=$(dirname "$file")/../.venv/bin:$PATH
command -v deepspeed >/dev/null || { echo "megasink: no deepspeed on PATH; bash tools/setup_env.sh makes .venv" >&2; exit 2; }
if [ -n "$RANK" ]; then exec python -u "$file" "$@"; fi
if [ -n "$SLURM_JOB_ID" ]; then
  srun --kill-on-bad-exit=1 python -u "$file" "$@"
  code=$?
  # stopped on request, or broken by a node: the job goes on later (docs/fault-tolerance.md); scancel without --signal ends it
  case $code in 75 | 76) scontrol requeue "$SLURM_JOB_ID" ;; esac
  exit $code
fi
exec deepspeed -q ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} ${MASTER_PORT:+--master_port "$MASTER_PORT"} "$file" "$@"
: <<'#PYTHON'
":"""
# This half is one rank.
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))  # also where megasink is not installed

from megasink.train import main

main(["--config", str(here / "pretrain_1b.yaml"), *sys.argv[1:]])
#PYTHON
