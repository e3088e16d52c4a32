#!/usr/bin/env bash
# Sets up .venv if needed and runs the tests; arguments go to pytest: bash tests/run.sh -k quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
exec .venv/bin/python -m pytest "$@"
