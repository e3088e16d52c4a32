"""examples/pretrain_1b.sh is bash to bash and sbatch, Python to launchers, and one run to both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jobs import TINY, losses, write_tokens

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "pretrain_1b.sh"
BIN = Path(sys.executable).parent
SMALLER = [*TINY, "--head-dim", "8", "--train-iters", "2", "--lr-warmup-iters", "0", "--eval-interval", "0"]


def start(*command: object, **environ: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | environ
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


def test_deepspeed_bash_and_torchrun_train_the_same(data, tmp_path):
    """Two ranks by each launcher, flags overriding the YAML: equal losses to the last digit."""
    shared = [*SMALLER, "--data-path", data, "--tensor-model-parallel-size", 2]
    launches = {
        "deepspeed": [BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port(), FILE],
        "bash": ["bash", FILE],
        "torchrun": [BIN / "torchrun", "--nproc-per-node", 2, "--master-port", free_port(), FILE],
    }
    found = {}
    for name, command in launches.items():
        result = start(*command, *shared, "--save", tmp_path / name, NUM_GPUS="2", MASTER_PORT=free_port())
        assert result.returncode == 0, result.stdout + result.stderr
        found[name] = losses(tmp_path / name)
    assert len(found["bash"]) == 2 and found["bash"] == found["deepspeed"] == found["torchrun"]


def test_without_data_it_says_which_command_makes_some(tmp_path):
    result = start(sys.executable, FILE, *SMALLER, "--data-path", tmp_path / "missing", "--save", tmp_path / "run")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "missing.idx" in line and "python tools/preprocess_data.py" in line
    assert not (tmp_path / "run").exists()


def test_a_copy_that_sbatch_made_finds_the_repository_and_starts_srun(tmp_path):
    """As Slurm does it: the script runs from a spool folder, with the job's variables set."""
    copy = tmp_path / "slurm_script"
    copy.write_bytes(FILE.read_bytes())
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho srun "$@"\n')
    srun.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1", "PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}"}
    result = start("bash", copy, "--lr", "1e-4", SLURM_SUBMIT_DIR=str(ROOT), **slurm)
    assert result.stdout.split() == f"srun --kill-on-bad-exit=1 python -u {FILE} --lr 1e-4".split()
    result = start("bash", copy, SLURM_SUBMIT_DIR=str(tmp_path), **slurm)
    assert result.returncode == 2 and "submit from the top of the repository" in result.stderr
