#!/usr/bin/env bash
# A folder of wheels with everything megasink needs, made where there is a network, for machines where there is none.
set -euo pipefail

usage() {
  cat <<HELP
usage: PYTHON=python3.12 bash examples/offline/wheelhouse.sh [--out DIR] [--torch cuda|cpu|cu126|...] [--glibc 28]

  PYTHON       interpreter of the same minor version as the cluster's (default python3)
  --out DIR    the wheelhouse (default wheelhouse)
  --torch      cuda: the CUDA build that PyPI has (default); cpu; or a build of download.pytorch.org, named as there
  --glibc N    the cluster has glibc 2.N or newer (default 28: RHEL 8, Debian 10; Ubuntu 20.04 has 31)

Versions are those of constraints.txt. Wheels for CUDA take about 5 GB. On the cluster, in the repository:
  PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheelhouse bash tools/setup_env.sh      (on a node with GPUs for a CUDA build)
HELP
}

fail() {
  echo "megasink: $*" >&2
  exit 2
}

out=wheelhouse torch=cuda glibc=28 python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
  case $1 in
    --out | --torch | --glibc)
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      declare "${1#--}=$2"
      shift 2
      ;;
    -h | --help) usage && exit ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
[[ $torch =~ ^(cuda|cpu|cu[0-9]+)$ ]] || fail "--torch $torch: give cuda, cpu, or a CUDA version as in cu126"
[[ $glibc =~ ^[0-9]+$ ]] || fail "--glibc $glibc: give the number behind 2., for example 28"
"$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || fail "$python: Python >= 3.11 with venv is needed; set PYTHON"
mkdir -p "$out" || fail "--out $out: cannot make it"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

version=$(sed -n 's/^torch==//p' constraints.txt)
indexes=()
case $torch in
  cuda) ;;
  cpu) version+=+cpu ;;
  *) version+=+$torch indexes=(--extra-index-url "https://download.pytorch.org/whl/$torch") ;;
esac
sed "s/^torch==.*/torch==$version/" constraints.txt >"$scratch/constraints.txt"

# wheels for the cluster's glibc, not for this machine's
platforms=(--platform "linux_$(uname -m)" --platform "manylinux2014_$(uname -m)")
for minor in $(seq 5 "$glibc"); do platforms+=(--platform "manylinux_2_${minor}_$(uname -m)"); done
download() {
  pip download --quiet --dest "$out" --find-links "$out" --only-binary=:all: "${platforms[@]}" "$@"
}

echo "1/3 DeepSpeed, which comes as source: a wheel without compiled operators"
DS_BUILD_OPS=0 pip wheel --quiet --no-deps --wheel-dir "$out" -c "$scratch/constraints.txt" deepspeed
echo "2/3 torch $version"
download --no-deps "${indexes[@]}" "torch==$version" ||
  { [ "$torch" = cpu ] && download --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$version"; } ||
  fail "no torch $version for $("$python" --version) and glibc 2.$glibc; see above"
echo "3/3 all the rest"
extras=test,demo
[ "$torch" = cpu ] || extras+=,gpu
"$scratch/venv/bin/python" - "$extras" >"$scratch/requirements.txt" <<'PYTHON'
import ast, sys

# setup.py's own words, without building anything
call = next(node.value for node in ast.parse(open("setup.py").read()).body if isinstance(getattr(node, "value", None), ast.Call))
words = {keyword.arg: keyword.value for keyword in call.keywords}
extras = ast.literal_eval(words["extras_require"])
print(*ast.literal_eval(words["install_requires"]), *(line for extra in sys.argv[1].split(",") for line in extras[extra]), sep="\n")
PYTHON
download -c "$scratch/constraints.txt" -r "$scratch/requirements.txt" pip setuptools wheel
(cd "$out" && sha256sum -- *.whl >SHA256SUMS)
echo "$out: $(find "$out" -name '*.whl' | wc -l) wheels, $(du -sh "$out" | cut -f1). On the other side: (cd wheelhouse && sha256sum --check --quiet SHA256SUMS)"
