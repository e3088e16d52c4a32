#!/usr/bin/env bash
# One run on a Slurm of two nodes of its own is asked to stop, meets its time limit twice (the signal sent to the ranks, then to the
# batch script), and loses a node's slurmd. Each time it is requeued and goes on; it must end as the undisturbed run does. Needs root:
#   bash tests/long/slurm_faults.sh EMPTY_FOLDER
set -euo pipefail
work=$(realpath -m "$1") root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
steps=${STEPS:-4000}
mkdir -p "$work"
cd "$work"
export SLURM_CONF=$work/slurm/slurm.conf PYTHONPATH=$root OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo DS_ACCELERATOR=cpu
bash "$root/tests/slurm/two_nodes.sh" start "$work/slurm"
trap 'scancel --user=root --signal=KILL; sleep 1; bash "$root/tests/slurm/two_nodes.sh" stop "$work/slurm"' EXIT

python -c 'from pathlib import Path; from tests.helpers.jobs import write_tokens; write_tokens(Path("tokens"))'
flags=(--data-path "$work/tokens" --vocab-size 64 --num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4
  --seq-length 16 --micro-batch-size 2 --global-batch-size 4 --precision fp32 --lr-decay-style constant --log-interval 1
  --wandb-mode disabled --train-iters "$steps" --save-interval 50 --keep-last 3)
cat >job.sh <<'JOB'
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --overcommit --requeue --open-mode=append --time=30
# with --signal=B:USR1@100 only this shell is signalled: it passes the signal on to the ranks through srun
trap 'echo "the batch script got USR1"; kill -USR1 $srun' USR1
srun --overcommit --kill-on-bad-exit=1 python -u -m megasink.train "$@" &
srun=$!
wait $srun
code=$?
if [ $code -gt 128 ] && kill -0 $srun 2>/dev/null; then wait $srun; code=$?; fi  # the trap ended the first wait
echo "srun ended with $code"
case $code in 75 | 76) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit $code
JOB

step() { if [ -f disturbed/metrics.jsonl ]; then wc -l <disturbed/metrics.jsonl; else echo 0; fi; }
field() { scontrol show job "$job" | grep -o "$1=[^ ]*" | cut -d= -f2; }
until_step() { while [ "$(step)" -lt "$1" ]; do sleep 0.2; done; }
until_restarts() { while [ "$(field Restarts)" != "$1" ]; do sleep 0.2; done; }
until_requeued() { # Slurm starts a requeued job after two minutes, or when told
  until_restarts "$1"
  scontrol update JobId="$job" TimeLimit=30
  echo "$2: requeued at step $(step)"
  while [ "$(field JobState)" != RUNNING ]; do scontrol update JobId="$job" StartTime=now+2seconds 2>/dev/null || true; sleep 4; done
}
submit() { job=$(sbatch --parsable --output=disturbed.log "$@" job.sh "${flags[@]}" --save disturbed --auto-resume); }

submit --signal=USR1@100
until_step $((steps / 8))
scancel --signal=TERM "$job"
until_requeued 1 "scancel --signal=TERM"
until_step $((2 * steps / 8))
scontrol update JobId="$job" TimeLimit=2
until_requeued 2 "--signal=USR1@100, time limit near"
until_step $((3 * steps / 8))
kill -9 "$(cat slurm/slurmd.sink2.pid)"
until_restarts 3
slurmd -N sink2
scontrol update NodeName=sink2 State=RESUME 2>/dev/null || true
until_requeued 3 "slurmd of a node killed"
at=$(step)
until_step $((at + 100))
scancel --signal=USR1 "$job"
until_restarts 4
scancel "$job"
echo "scancel --signal=USR1: requeued at step $(step); cancelled, and submitted again"

submit --signal=B:USR1@100
until_step $((at + 300))
scontrol update JobId="$job" TimeLimit=2
until_requeued 1 "--signal=B:USR1@100, time limit near"
while [ "$(field JobState)" != COMPLETED ]; do sleep 0.5; done

job=$(sbatch --parsable --output=undisturbed.log job.sh "${flags[@]}" --save undisturbed)
while [ "$(field JobState)" != COMPLETED ]; do sleep 0.5; done
grep -h "megasink: \|Stopped\|srun ended\|batch script got" disturbed.log | cut -c1-150
python - <<'PYTHON'
from pathlib import Path
from tests.helpers.jobs import metrics_without_times
disturbed, undisturbed = (metrics_without_times(Path(run)) for run in ("disturbed", "undisturbed"))
assert disturbed == undisturbed, "the runs differ"
print(f"{len(disturbed)} steps, all equal to the undisturbed run's")
PYTHON
