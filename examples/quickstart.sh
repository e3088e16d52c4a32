#!/usr/bin/env bash
# Text in, sink report out: sets up .venv, tokenizes a small corpus, trains a baseline and a V-scale Llama, compares them.
set -euo pipefail

usage() {
  cat <<HELP
usage: bash examples/quickstart.sh [--steps N] [--out DIR] [--no-setup]

  --steps N    optimizer steps of each of the two models (default 250); asked for more later, training goes on
  --out DIR    where everything is written (default quickstart-out in the checkout)
  --no-setup   use the Python environment that is active instead of making .venv

Under 10 minutes on 2 cores, installation included. Run again, it reuses what is done.
HELP
}

fail() {
  echo "megasink: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
steps=250 out=$root/quickstart-out setup=yes
while [ $# -gt 0 ]; do
  case $1 in
    --steps=* | --out=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --steps | --out)
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      if [ "$1" = --steps ]; then steps=$2; else out=$2; fi
      shift 2
      ;;
    --no-setup) setup=no && shift ;;
    -h | --help) usage && exit ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
[[ $steps =~ ^[1-9][0-9]{0,8}$ ]] || fail "--steps $steps: give a whole number of 1 or more"
{ mkdir -p "$out" && [ -w "$out" ]; } 2>/dev/null || fail "--out $out: cannot write there; choose another folder"
[ -d "$out/.started" ] || [ -z "$(ls -A "$out")" ] || fail "--out $out: holds other files; choose a new or empty folder"
mkdir -p "$out/.started"
out=$(cd "$out" && pwd)
cd "$root"

# step TITLE RESULT COMMAND...: makes RESULT unless it is there, made by this same command after the same earlier steps.
# What stands in `unkeyed` is added to the command but does not make old results invalid.
number=0 unkeyed=() key=$(sha256sum <examples/quickstart.yaml)
step() {
  local title="[$((++number))/7] $1" result=$2 stamp=$out/.started/$number
  shift 2
  key=$(printf '%s\n' "$key" "$@" | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
    rm -rf "${result%/checkpoints/*}"
    echo "$key" >"$stamp"
  fi
  if [ -e "$result" ]; then echo "$title: done before" && return; fi
  echo "$title"
  "$@" "${unkeyed[@]}" || fail "stopped at $title: its reason stands above; the same command goes on from here"
}

SECONDS=0
if [ "$setup" = yes ]; then
  bash tools/setup_env.sh
  . .venv/bin/activate
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

step "Corpus: presidential addresses" "$out/valid.jsonl" python examples/sotu_to_jsonl.py --output "$out"
step "SentencePiece tokenizer of 2048 entries" "$out/tokenizer.model" \
  python tools/train_tokenizer.py --input "$out/train.jsonl" --output "$out/tokenizer" --vocab-size 2048
for split in train valid; do
  step "Tokens: $split" "$out/$split.json" python tools/preprocess_data.py --input "$out/$split.jsonl" \
    --output-prefix "$out/$split" --tokenizer "$out/tokenizer.model" --prepend-bos --append-eod
done

# Two ranks share each layer, on processor cores or on two GPUs; a single GPU takes the whole model.
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=2
if [ "$gpus" = 0 ]; then export DS_ACCELERATOR=cpu; fi
if [ "$gpus" = 1 ]; then ranks=1; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > ranks ? $(nproc) / ranks : 1))}
checkpoint=checkpoints/step_$(printf %08d "$steps")

launch() {  # the ranks of one training; the port is one that is free, so that two quick starts do not meet
  local port
  port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  deepspeed -q --num_gpus "$ranks" --master_port "$port" --module megasink.train "$@"
}

train() {  # train TITLE NAME FLAGS...
  step "$1, $steps steps" "$out/$2/$checkpoint" launch --config examples/quickstart.yaml --save "$out/$2" \
    --data-path "$out/train" --valid-data-path "$out/valid" --tokenizer "$out/tokenizer.model" \
    --tensor-model-parallel-size "$ranks" --zero-stage 1 "${@:3}"
}

newest=$({ ls "$out"/{baseline,v_scale}/checkpoints 2>/dev/null || true; } | sed -n 's/^step_0*\([1-9]\)/\1/p' | sort -n | tail -n 1)
if [ "${newest:-0}" -gt "$steps" ] && ! { [ -d "$out/baseline/$checkpoint" ] && [ -d "$out/v_scale/$checkpoint" ]; }; then
  fail "--steps $steps: $out is at step $newest already; ask for that many or more, or choose another --out"
fi
unkeyed=(--train-iters "$steps" --lr-warmup-iters $((steps < 20 ? steps : 20)))
train "Baseline Llama" baseline --v-scale off
train "V-scale Llama" v_scale --v-scale on
unkeyed=()

step "Report" "$out/report/report.html" python tools/analyze_ckpt.py "$out/baseline/$checkpoint" "$out/v_scale/$checkpoint" \
  --label baseline V-scale --compare baseline:V-scale --data "$out/valid" --out "$out/report"

echo "Done after $((SECONDS / 60)) min $((SECONDS % 60)) s. Open $out/report/report.html"
