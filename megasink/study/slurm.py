"""Slurm, by its own commands. A job is known by its comment, the run folder; nothing else is remembered."""

import os
import subprocess
import sys
from pathlib import Path

from megasink.errors import UserError
from megasink.study.run_folder_reader import QUEUED, RUNNING
from megasink.study.study_file import Study, StudyRun

_RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED"}


def sbatch_command(study: Study, run: StudyRun) -> list[str]:
    """What submits a run; options of the study file come last, so they win."""
    options = {
        "parsable": "true",
        "job-name": f"{study.name}-{run.name}",
        "comment": str(run.folder),
        "output": str(run.log),
        "open-mode": "append",
    } | study.sbatch
    words = [f"--{name}" if value in ("true", "") else f"--{name}={value}" for name, value in options.items()]
    return ["sbatch", *words, str(study.script), *run.flags]


def submit(study: Study, run: StudyRun) -> str:
    """Returns the job's number."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    return _slurm(sbatch_command(study, run)).strip().partition(";")[0]


def find_jobs() -> dict[str, tuple[str, str]]:
    """Run folder -> (`queued` or `running`, job's number) of this user's jobs that have not ended."""
    reply = _slurm(["squeue", f"--user={os.getuid()}", "--noheader", "--format=%i|%T|%k"])
    jobs = {}
    for line in reply.splitlines():
        number, state, comment = line.strip().split("|", 2)
        jobs[comment] = (RUNNING if state in _RUNNING else QUEUED, number)
    return jobs


def cancel(numbers: list[str]) -> None:
    _slurm(["scancel", *numbers])


def environment() -> dict[str, str]:
    """This process's, with its Python's programs (deepspeed) within reach."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}


def _slurm(command: list[str]) -> str:
    try:
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError(f"no {command[0]} here; on a machine without Slurm use --on local") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise UserError(f"{command[0]}: {said}") from None
