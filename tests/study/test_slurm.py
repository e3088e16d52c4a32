"""Submission, with sbatch, squeue and scancel that write down what they are told (tests/slurm has the real ones)."""

import json
import subprocess
import sys

import pytest

from tests.helpers.jobs import ROOT
from tests.study.files import write_last_checkpoint, write_run, write_study

STUB = """#!{python}
import json, os, sys
from pathlib import Path
queue = Path({folder!r}, "queue.json")
jobs = json.loads(queue.read_text()) if queue.exists() else {{}}
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "sbatch":
    number = str(len(jobs) + 1)
    jobs[number] = words
    print(number + ";cluster")
elif name == "squeue":
    for number, words in jobs.items():
        comment = next(word for word in words if word.startswith("--comment="))
        print(number, "PENDING", comment.removeprefix("--comment="), sep="|")
else:
    jobs = {{number: words for number, words in jobs.items() if number not in words}}
    Path({folder!r}, "cancelled").write_text(" ".join(sys.argv[1:]))
queue.write_text(json.dumps(jobs))
"""


@pytest.fixture
def command(tmp_path):
    """tools/study.py FLAGS, on a machine with the stubs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (folder / name).write_text(STUB.format(python=sys.executable, folder=str(tmp_path)))
        (folder / name).chmod(0o755)
    study = write_study(
        tmp_path / "s.yaml", seeds=[1, 2], sbatch={"nodes": "2", "time": "1:00:00", "exclusive": "true"}
    )

    def run(*flags: str) -> subprocess.CompletedProcess:
        environment = {"PATH": str(folder), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, ROOT / "tools" / "study.py", study, *flags]
        return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)

    return run


def test_what_is_neither_finished_nor_queued_is_submitted(command, tmp_path):
    """A finished run, a diverged one, one that has stopped and one that was never begun."""
    out = tmp_path / "out"
    for name in ("baseline_seed1", "V-scale_seed1", "baseline_seed2"):
        write_run(out / name, [3, 2, 1, 0.5] if name == "baseline_seed1" else [3, 2])
    write_last_checkpoint(out / "baseline_seed1", 4)
    (out / "V-scale_seed1" / "events.jsonl").write_text('{"event": "diverged", "step": 2}\n')

    first = command()
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[:4] == [
        "baseline_seed1: finished",
        "V-scale_seed1: diverged",
        "baseline_seed2: submitted as job 1, from step 2",
        "V-scale_seed2: submitted as job 2, from step 0",
    ]
    jobs = json.loads((tmp_path / "queue.json").read_text())
    options, flags = (jobs["2"][: jobs["2"].index("--exclusive") + 1], jobs["2"][jobs["2"].index("--exclusive") + 1 :])
    assert {"--nodes=2", "--time=1:00:00", f"--comment={out / 'V-scale_seed2'}", "--open-mode=append"} <= set(options)
    assert flags[0].endswith("pretrain_0.1b.sh")
    assert flags[-5:] == ["--seed", "2", "--save", str(out / "V-scale_seed2"), "--auto-resume"]
    assert "1 of 4 finished, 1 diverged, 2 queued" in first.stdout and (out / "study.html").is_file()

    assert "V-scale_seed2: queued" in command().stdout
    assert len(json.loads((tmp_path / "queue.json").read_text())) == 2

    assert command("--cancel").stdout == "cancelled 2 jobs: 1 2\n"
    assert (tmp_path / "cancelled").read_text() == "1 2"


def test_without_slurm_it_says_so(command, tmp_path):
    (tmp_path / "bin" / "squeue").unlink()
    result = command("--status")
    assert result.returncode == 2
    assert result.stderr == "megasink: no squeue here; on a machine without Slurm use --on local\n"


def test_what_sbatch_says_is_passed_on(command, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    result = command()
    assert (result.returncode, result.stderr) == (2, "megasink: sbatch: sbatch: error: invalid partition\n")


def test_a_dry_run_prints_commands_and_starts_nothing(command, tmp_path):
    result = command("--dry-run", "--on", "local")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["bash"] * 4
    assert not (tmp_path / "out").exists()
