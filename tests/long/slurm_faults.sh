#!/usr/bin/env bash
# A run on two Slurm nodes is asked to stop (--signal TERM), requeued, loses a node's slurmd, is requeued by Slurm, and ends as the
# undisturbed run does. Needs a two-node Slurm of one's own, since a slurmd is killed:
#   SLURM_CONF=... SLURMD_PID_FILE=PID_FILE_OF_NODE2 SLURMD_START="slurmd -N node2" bash tests/long/slurm_faults.sh WORK_FOLDER
set -euo pipefail
work=$(realpath -m "$1") root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
steps=${STEPS:-1200}
mkdir -p "$work"
cd "$work"
export PYTHONPATH=$root OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo

python - <<'PYTHON'
from pathlib import Path
from tests.helpers.jobs import write_tokens
write_tokens(Path("tokens"))
PYTHON
cat >job.sh <<'JOB'
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --overcommit --requeue --open-mode=append --signal=TERM@60
srun --overcommit --kill-on-bad-exit=1 python -u -m megasink.train "$@"
code=$?
echo "srun ended with $code"
case $code in 75 | 76) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit $code
JOB
flags=(--data-path "$work/tokens" --vocab-size 64 --num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4
  --seq-length 16 --micro-batch-size 2 --global-batch-size 4 --precision fp32 --lr-decay-style constant --log-interval 1
  --wandb-mode disabled --train-iters "$steps" --save-interval 50 --auto-resume)

step() { wc -l 2>/dev/null <"$1/metrics.jsonl" || echo 0; }
state() { squeue --noheader --format=%T --jobs="$job" 2>/dev/null || true; }
until_step() { while [ "$(step disturbed)" -lt "$1" ]; do sleep 0.5; done; }
until_requeued() { # Slurm starts a requeued job after two minutes, or when told
  while [ "$(scontrol show job "$job" | grep -o 'Restarts=[0-9]*')" != "Restarts=$1" ]; do sleep 0.5; done
  until scontrol update JobId="$job" StartTime=now 2>/dev/null; do sleep 0.5; done
}

job=$(sbatch --parsable --output=disturbed.log job.sh "${flags[@]}" --save disturbed)
until_step $((steps / 4))
scancel --signal=TERM "$job"
until_requeued 1
echo "asked to stop and requeued at step $(step disturbed)"
until_step $((steps / 2))
kill -9 "$(cat "$SLURMD_PID_FILE")"
until_requeued 2
echo "requeued at step $(step disturbed) after the slurmd of a node was killed"
$SLURMD_START
scontrol update NodeName=node2 State=RESUME 2>/dev/null || true
while [ -n "$(state)" ] && [ "$(state)" != COMPLETED ]; do sleep 0.5; done

job=$(sbatch --parsable --output=undisturbed.log job.sh "${flags[@]}" --save undisturbed)
while [ -n "$(state)" ] && [ "$(state)" != COMPLETED ]; do sleep 0.5; done
grep -h "megasink: \|Stopped\|srun ended" disturbed.log | cut -c1-150
python - <<'PYTHON'
from pathlib import Path
from tests.helpers.jobs import metrics_without_times
disturbed, undisturbed = (metrics_without_times(Path(run)) for run in ("disturbed", "undisturbed"))
assert disturbed == undisturbed, "the runs differ"
print(f"{len(disturbed)} steps, all equal to the undisturbed run's")
PYTHON
