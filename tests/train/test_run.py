"""One run from the outside: what it refuses, how it stops, what it starts from."""

import os
import shutil
import socket
import subprocess
import sys

import filelock
import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from megasink.config import RunConfig
from megasink.config.cli import load_yaml
from megasink.train.exit_codes import STOPPED
from tests.helpers.jobs import TINY, losses, metrics, train


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tensor-model-parallel-size", 2], "1 ranks were started, which is no multiple"),
        (["--global-batch-size", 3], "--global-batch-size 3 is not a multiple of --micro-batch-size 2"),
        (["--num-layerz", 3], "Unrecognized options: --num-layerz"),
        (["--data-path", "nowhere"], "nowhere"),
        (["--data-path", "/etc"], "--data-path /etc: a folder; give the prefix of token files in it, as /etc/"),
        (["--data-path"], "--data-path"),
        (["--save", "/dev/null/run"], "--save /dev/null/run: cannot write there"),
        (["--load", "/nowhere"], "/nowhere"),
        (["--eval-interval", 1, "--eval-iters", 10_000, "--split", "50,50,0"], "lower --eval-iters to"),
        (["--eval-interval", 1, "--eval-iters", 10_000], "do not evaluate (--eval-interval 0)"),
    ],
)
def test_a_mistake_is_one_line(tokens, tmp_path, flags, says):
    outcome = train("--data-path", tokens, "--save", tmp_path / "run", "--train-iters", 2, *flags, expect=2)
    (line,) = outcome.output.splitlines()
    assert line.startswith("megasink: ") and says in line


def test_a_mistake_is_said_once_by_all_ranks_together(tokens, tmp_path):
    outcome = train("--data-path", "nowhere", "--save", tmp_path / "run", ranks=2, expect=2)
    assert len(outcome.output.splitlines()) == 1


def test_a_folder_in_use_is_refused(tokens, tmp_path):
    with filelock.FileLock(tmp_path / ".lock"):
        outcome = train("--data-path", tokens, "--save", tmp_path, expect=2)
    assert "another job is writing this run folder" in outcome.output


def test_a_meeting_port_that_is_taken_is_said(tokens, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = {"MASTER_PORT": str(other.getsockname()[1])}
        outcome = train("--data-path", tokens, "--save", tmp_path, environ=port, expect=2)
    (line,) = outcome.output.splitlines()
    assert line.startswith(f"megasink: MASTER_PORT {port['MASTER_PORT']} is taken")


@pytest.fixture(scope="module")
def run(tokens, tmp_path_factory):
    """Three steps with a checkpoint at the end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("--data-path", tokens, "--save", folder, "--train-iters", 3)
    return folder


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--hidden-size", 128], "is of a model with --hidden-size"),
        (["--num-layers", 3], "is of a model with --num-layers"),
        (["--v-scale", "on"], "is of a model with --v-scale off, not on"),
        (["--train-iters", 2], "--train-iters 2: "),
    ],
)
def test_a_run_does_not_go_on_as_another(run, tokens, flags, says):
    outcome = train("--data-path", tokens, "--save", run, "--train-iters", 4, "--auto-resume", *flags, expect=2)
    (line,) = outcome.output.splitlines()
    assert says in line


def test_a_checkpoint_that_has_lost_its_manifest_is_no_new_start(run, tokens, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000003" / "manifest.json").unlink()
    outcome = train("--data-path", tokens, "--save", tmp_path / "run", "--auto-resume", expect=2)
    assert "no readable manifest" in outcome.output and "every checkpoint is damaged" in outcome.output


def test_a_folder_with_a_run_is_not_written_over(run, tokens):
    before = (run / "metrics.jsonl").read_bytes()
    outcome = train("--data-path", tokens, "--save", run, expect=2)
    assert "go on with --auto-resume" in outcome.output
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_is_done_resumes_to_nothing(run, tokens):
    outcome = train("--data-path", tokens, "--save", run, "--train-iters", 3, "--auto-resume")
    assert outcome.lines("megasink: resuming after step 3") and len(metrics(run)) == 3


def test_the_saved_configuration_is_complete_and_reloadable(run):
    config = load_yaml(RunConfig, run / "config.yaml")
    assert (config.model.hidden_size, config.model.vocab_size, config.training.train_iters) == (32, 64, 3)
    stored = yaml.safe_load((run / "checkpoints" / "step_00000003" / "config.yaml").read_text())
    assert stored["model"]["num_layers"] == 2


def test_load_takes_the_weights_and_nothing_else(run, tokens, tmp_path):
    train("--data-path", tokens, "--save", tmp_path / "new", "--train-iters", 1, "--load", run)
    trained, start = (
        load_file(folder / "model.safetensors")
        for folder in (run / "checkpoints" / "step_00000003", tmp_path / "new" / "checkpoints" / "step_00000000")
    )
    assert all(np.array_equal(trained[name], start[name]) for name in trained)
    (record,) = metrics(tmp_path / "new")
    assert (record["step"], record["consumed_samples"]) == (1, 4)
    assert record["loss"] != losses(run)[0]


def test_weights_that_changed_since_they_were_written_are_not_started_from(run, tokens, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with open(tmp_path / "run" / "checkpoints" / "step_00000003" / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    flags = ["--data-path", tokens, "--save", tmp_path / "new", "--train-iters", 1, "--load", tmp_path / "run"]
    (line,) = train(*flags, ranks=2, expect=2).output.splitlines()
    assert "step_00000003 is damaged (model.safetensors has changed" in line


def test_the_time_limit_saves_and_says_so(tokens, tmp_path):
    flags = ["--data-path", tokens, "--save", tmp_path, "--train-iters", 10**6, "--save-interval", 0]
    outcome = train(*flags, "--exit-duration-in-mins", 1e-9, ranks=2, expect=75)
    last = metrics(tmp_path)[-1]["step"]
    assert last < 10
    assert outcome.lines(f"Stopped after step {last} (time limit reached)")
    assert (tmp_path / "checkpoints" / f"step_{last:08d}" / "state.json").exists()


@pytest.mark.parametrize(
    "wandb", ["raise ImportError('no wandb here')", "def init(**_): raise RuntimeError('its server is on fire')"]
)
def test_wandb_absent_or_broken_never_stops_a_run(tokens, tmp_path, wandb):
    (tmp_path / "wandb.py").write_text(wandb)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from megasink.train import main; main()"
    flags = ["--data-path", tokens, "--save", tmp_path / "run", "--train-iters", 2, "--wandb-mode", "offline"]
    outcome = train(*flags, program=program)
    assert len(outcome.lines("megasink: wandb is off for this run")) == 1
    assert len(metrics(tmp_path / "run")) == 2


def test_a_signal_that_wandbs_process_gets_too_leaves_no_traceback(tokens, tmp_path):
    """Slurm's goes to all processes of a job step; wandb's ends at once."""
    flags = [*TINY, "--data-path", tokens, "--save", tmp_path, "--train-iters", 5_000, "--wandb-mode", "offline"]
    command = [sys.executable, "-m", "megasink.train", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        next(line for line in job.stdout if line.startswith("step"))
        for child in psutil.Process(job.pid).children(recursive=True):
            if "wandb" in child.name():
                child.terminate()
        next(line for line in job.stdout if line.startswith("megasink: wandb is off for this run"))
        job.terminate()
        said = job.stdout.read()
    assert job.returncode == STOPPED and "Stopped after step" in said
    assert "Traceback" not in said


def test_a_resumed_run_goes_on_under_its_wandb_id_and_its_files_hold_no_secrets(tokens, tmp_path):
    run = tmp_path / "run"
    flags = ["--data-path", tokens, "--save", run, "--wandb-mode", "offline", "--auto-resume", "--train-iters"]
    secrets = {"WANDB_API_KEY": "5ec2e7" * 7, "HF_TOKEN": "hf_5ec2e75ec2e7"}
    train(*flags, 1, environ=secrets)
    train(*flags, 2, environ=secrets)
    kept = b"".join(path.read_bytes() for path in (run / "wandb").rglob("*") if path.is_file())
    assert b"5ec2e7" not in kept and b"--auto-resume" not in kept and b"num_layers" in kept
    folders = sorted((run / "wandb").glob("offline-run-*"))
    (run_id,) = {folder.name.rsplit("-", 1)[1] for folder in folders}
    assert len(folders) == 2 and (run / "wandb" / "run_id.txt").read_text() == run_id
