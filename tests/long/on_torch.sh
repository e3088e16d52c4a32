#!/usr/bin/env bash
# Tests with another version of torch than CI's, from PyPI (CUDA builds work on a CPU; some gigabytes, under a minute):
#   bash tests/long/on_torch.sh 2.11.0 [pytest's arguments; default: what compiles, trains and communicates]
# Everything else comes from this checkout's .venv (tests/run.sh makes it), or from the environment of PYTHON.
set -euo pipefail
version=${1:?give a version of torch, such as 2.11.0}
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || { echo "megasink: no $python; bash tools/setup_env.sh makes it, or name another: PYTHON=..." >&2; exit 2; }
folder=${TMPDIR:-/tmp}/megasink-torch-$version-$("$python" -c 'import platform; print(platform.python_version())')
if [ ! -f "$folder/ready" ]; then
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/pip" install -q --disable-pip-version-check "torch==$version"
  touch "$folder/ready"
fi
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(echo "$folder"/lib/python3.*/site-packages)/zz_rest.pth"
[ $# -gt 0 ] || set -- tests/model tests/parallel tests/stats tests/distributed tests/train tests/faults/test_faults.py
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 PYTHONPATH=$PWD exec "$folder/bin/python" -m pytest -q "$@"
