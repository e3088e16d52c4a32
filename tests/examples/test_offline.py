"""The scripts for clusters without a network, with stand-ins for what only a cluster has."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OFFLINE = ROOT / "examples" / "offline"
STAND_INS = {
    "scontrol": '[ "$1" = show ] && printf "node3\\nnode4\\n" || echo scontrol "$@"',
    "srun": 'echo "at $MASTER_ADDR with $SRUN_CPUS_PER_TASK:" "$@"; case "$*" in *"$FAILING"*) exit "$CODE" ;; esac',
}


def submit(folder: Path, *words: object, **environ: str) -> subprocess.CompletedProcess:
    """Run the container's job script as Slurm does."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "image.sif").touch()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[3-4]", "SLURM_CPUS_PER_TASK": "8"}
    settings = {"PATH": f"{folder}:{os.environ['PATH']}", "SIF": str(folder / "image.sif"), "FAILING": "nothing"}
    command = ["bash", OFFLINE / "pretrain.sbatch", *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    return subprocess.run(
        command, cwd=ROOT, env=kept | slurm | settings | environ, capture_output=True, text=True, timeout=60
    )


def test_the_nodes_are_looked_at_then_each_rank_trains_in_a_container(tmp_path):
    result = submit(tmp_path, "examples/pretrain_1b.sh", "--lr", "1e-4", BIND="/data")
    assert result.returncode == 0, result.stderr
    preflight, training = result.stdout.splitlines()
    container = f"apptainer exec --nv --bind {ROOT},/data --pwd {ROOT} {tmp_path}/image.sif"
    start = f"at node3 with 8: --kill-on-bad-exit=1 {container} python -u"
    assert preflight == f"{start} examples/preflight.sbatch --save runs/preflight-7"
    assert training == f"{start} examples/pretrain_1b.sh --wandb-mode offline --lr 1e-4"


def test_a_bad_node_ends_the_job_before_the_training(tmp_path):
    result = submit(tmp_path, "examples/pretrain_1b.sh", FAILING="preflight", CODE="1")
    assert result.returncode == 1 and "pretrain_1b.sh" not in result.stdout


@pytest.mark.parametrize(("code", "requeued"), [("75", True), ("76", True), ("1", False), ("77", False)])
def test_what_was_stopped_goes_on_later(tmp_path, code, requeued):
    result = submit(tmp_path, "examples/pretrain_1b.sh", FAILING="pretrain", CODE=code, PREFLIGHT="no")
    assert result.returncode == int(code)
    assert ("scontrol requeue 7" in result.stdout) == requeued


@pytest.mark.parametrize(
    ("words", "environ", "said"),
    [
        ((), {}, "name the preset"),
        (("examples/none.sh",), {}, "name the preset"),
        (("examples/pretrain_1b.sh",), {"SIF": "/none.sif"}, "no image /none.sif"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, words, environ, said):
    result = submit(tmp_path, *words, **environ)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("megasink: ") and said in line


@pytest.mark.parametrize("flags", [["--torch", "rocm"], ["--out"], ["--glibc", "new"], ["--fast"]])
def test_the_wheelhouse_refuses_bad_flags_in_one_line(flags):
    result = subprocess.run(["bash", OFFLINE / "wheelhouse.sh", *flags], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("megasink: ") and flags[0] in line


def test_the_image_gets_what_is_in_the_repository():
    """%files of the definition name existing paths, and the wheelhouse."""
    text = (OFFLINE / "megasink.def").read_text()
    files = text.split("%files\n")[1].split("\n\n")[0].splitlines()
    sources = [line.split()[0] for line in files if "{{" not in line]
    assert {"megasink", "setup.py", "ds_configs"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
