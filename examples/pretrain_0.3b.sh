#!/bin/bash
#SBATCH --job-name=pretrain_0.3b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
""":"
# Starts the run of pretrain_0.3b.yaml:  deepspeed FILE [flags]  |  bash FILE [flags]  |  sbatch FILE [flags]  |  torchrun FILE [flags]
# This half is for bash and sbatch; to Python it is a string. No backslash and no triple quote in here.
examples=$(dirname "$0")
[ -f "$examples/launch.sh" ] || examples=$SLURM_SUBMIT_DIR/examples  # sbatch runs a copy of this file
[ -f "$examples/launch.sh" ] || { echo "megasink: no $examples/launch.sh; submit from the top of the repository" >&2; exit 2; }
exec bash "$examples/launch.sh" "$examples/pretrain_0.3b.sh" "$@"
: <<'#PYTHON'
":"""
# This half is one rank.
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))  # also where megasink is not installed

from megasink.train import main

main(["--config", str(here / "pretrain_0.3b.yaml"), *sys.argv[1:]], environment=here / "cluster.env")
#PYTHON
