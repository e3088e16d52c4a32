#!/usr/bin/env bash
# Makes .venv in this checkout and installs megasink there with the versions of constraints.txt. Run again, it only
# compares a stamp. examples/quickstart.sh and tests/run.sh begin with it. PYTHON=/path/to/python3 picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/megasink.stamp
log=.venv/setup.log
pins=.venv/constraints.txt
torch_version=$(sed -n 's/^torch==//p' constraints.txt)

fail() {
  echo "megasink: $*" >&2
  exit 1
}

find_python() {
  local candidate without_venv=
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    "$candidate" -c 'import ensurepip, venv' 2>/dev/null && echo "$candidate" && return
    without_venv=$candidate
  done
  [ -z "$without_venv" ] || fail "$without_venv lacks the venv module; install it (Debian: apt-get install python3-venv)"
  fail "no Python >= 3.11 found${PYTHON:+ at PYTHON=$PYTHON}; install one, or name it: PYTHON=/path/to/python3.12"
}

pip_install() {
  echo "+ pip install $*" >>"$log"
  DS_BUILD_OPS=0 .venv/bin/python -m pip install --no-input --disable-pip-version-check "$@" >>"$log" 2>&1
}

install() {
  pip_install "$@" && return
  tail -n 8 "$log" >&2
  fail "pip could not install the above; all it said is in $PWD/$log"
}

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# A CUDA build of torch that the machine came with is kept: it fits the driver, and it is gigabytes.
torch_of_the_machine() {
  .venv/bin/python - <<'PYTHON' 2>/dev/null
import torch
assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11) and torch.cuda.is_available()
print(torch.__version__)
PYTHON
}

# One set-up at a time in a checkout; the lock is on the folder itself and goes with this process.
exec 9<.
flock -n 9 || { echo "Waiting for another set-up of this checkout ..."; flock 9; }
digest=$({ pwd; cat setup.py constraints.txt tools/setup_env.sh; } | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then exit 0; fi

python=$(find_python)
SECONDS=0
echo "Setting up $PWD/.venv with $("$python" --version 2>&1) (once; a few minutes)"
kept_torch=
if has_gpu && "$python" -m venv --clear --system-site-packages .venv; then kept_torch=$(torch_of_the_machine || true); fi
[ -n "$kept_torch" ] || "$python" -m venv --clear .venv || fail "$python could not make $PWD/.venv"
sed "s/^torch==.*/torch==${kept_torch:-$torch_version}/" constraints.txt >"$pins"

extras=test,demo
if [ -n "$kept_torch" ]; then
  echo "  1/3 torch $kept_torch of this machine is kept"
elif has_gpu; then
  echo "  1/3 torch $torch_version for CUDA (gigabytes) ..."
  install -c "$pins" torch
else
  echo "  1/3 torch $torch_version for the CPU ..."
  # Asked for by its full name: a plain `torch` brings the CUDA build from PyPI.
  pip_install --no-deps "torch==$torch_version+cpu" ||
    install --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$torch_version+cpu"
fi
if has_gpu; then extras+=,gpu; fi
echo "  2/3 what DeepSpeed is built with ..."
install -c "$pins" setuptools wheel torch
echo "  3/3 DeepSpeed, transformers and the rest ..."
install -c "$pins" --no-build-isolation -e ".[$extras]"
echo "$digest" >"$stamp"
echo "  ready after $SECONDS s"
