"""What tools/study.py does: start or go on, show, cancel."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import filelock
import tyro

from megasink.errors import UserError
from megasink.study import slurm
from megasink.study.gpus import deal_gpus, visible_gpus
from megasink.study.local import run_in_turn
from megasink.study.page import REFRESH_S, write_page
from megasink.study.run_folder_reader import FINISHED, OVER, QUEUED, RUNNING, RunProgress, read_progress
from megasink.study.same_settings import check_same_settings
from megasink.study.study_file import Study, load_study
from megasink.study.table import clock, headline, status_table
from megasink.train.exit_codes import STOPPED


@dataclass
class StudyRequest:
    """Run a study (arms x seeds) or go on with it; its page is kept fresh meanwhile."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY.yaml")]
    """The study file (docs/studies.md)."""
    on: Literal["slurm", "local"] | None = None
    """slurm: submit what is not finished and not queued; local: one run after the other here; default: slurm if the
    file has sbatch options, local otherwise."""
    at_once: int = 1
    """Locally, run this many at the same time; the visible GPUs are dealt out to them."""
    status: bool = False
    """Only print the state of all runs and draw the page."""
    watch: bool = False
    """On Slurm, after submitting: stay, and keep the page fresh until no run is queued or running."""
    cancel: bool = False
    """Cancel this study's Slurm jobs."""
    dry_run: bool = False
    """Check the file and print the commands that would start."""


def run_study(request: StudyRequest) -> int:
    """Returns the exit code: 0, 1 where runs ended unfinished, 75 where interrupted."""
    study = load_study(Path(request.study))
    on_slurm = (request.on or ("slurm" if study.sbatch else "local")) == "slurm"
    if sum((request.status, request.watch, request.cancel, request.dry_run)) > 1:
        raise UserError("give one of --status, --watch, --cancel and --dry-run")
    if (request.watch or request.cancel) and not on_slurm:
        raise UserError(f"--{'watch' if request.watch else 'cancel'} is for Slurm; --on local stops with Ctrl-C")
    check_at_once(request.at_once)
    if request.at_once > 1 and on_slurm:
        raise UserError("--at-once is for --on local; Slurm itself decides how many jobs run at the same time")
    if request.dry_run:
        return _print_commands(study, on_slurm)
    if request.status:
        return _show(study, on_slurm)
    if request.cancel:
        return _cancel(study)
    check_same_settings(study)
    return _submit(study, request.watch) if on_slurm else _run_here(study, request.at_once)


def check_at_once(at_once: int) -> None:
    """Raise UserError where no run could go on."""
    if at_once < 1:
        raise UserError(f"--at-once {at_once}: at least one run goes on at a time")


def _progress(study: Study, on_slurm: bool) -> list[RunProgress]:
    jobs = slurm.find_jobs() if on_slurm else {}
    return [read_progress(run, jobs.get(str(run.folder), (None, None))[0]) for run in study.runs]


def _print_commands(study: Study, on_slurm: bool) -> int:
    for run in study.runs:
        command = slurm.sbatch_command(study, run) if on_slurm else ["bash", str(study.script), *run.flags]
        print(shlex.join(command))
    return 0


def _show(study: Study, on_slurm: bool) -> int:
    progress = _progress(study, on_slurm)
    print(f"{headline(progress)}\n\n{status_table(progress)}\n")
    write_page(study, progress, live=False)
    print(f"page: {study.page}")
    return 0


def _cancel(study: Study) -> int:
    jobs = slurm.find_jobs()
    numbers = [jobs[str(run.folder)][1] for run in study.runs if str(run.folder) in jobs]
    if numbers:
        slurm.cancel(numbers)
    print(f"cancelled {len(numbers)} jobs{': ' + ' '.join(numbers) if numbers else ''}")
    return 0


def _submit(study: Study, watch: bool) -> int:
    with _only_one(study):
        for progress in _progress(study, on_slurm=True):
            if progress.state in (*OVER, QUEUED, RUNNING):
                print(f"{progress.run.name}: {progress.state}")
            else:
                number = slurm.submit(study, progress.run)
                print(f"{progress.run.name}: submitted as job {number}, from step {progress.step}")
    _show(study, on_slurm=True)
    if not watch:
        return 0
    going = True
    while going:
        time.sleep(REFRESH_S)
        try:
            progress = _progress(study, on_slurm=True)
        except UserError as error:  # a controller that is busy or restarts
            _say(f"megasink: {error}; asking again in {REFRESH_S} s")
            continue
        going = any(run.state in (QUEUED, RUNNING) for run in progress)
        write_page(study, progress, live=going)
    return _show(study, on_slurm=True)


def _run_here(study: Study, at_once: int) -> int:
    gpus = visible_gpus() if at_once > 1 else []
    dealt = deal_gpus(gpus, at_once)
    if idle := gpus[at_once * len(dealt[0]) :]:
        _say(f"{len(gpus)} GPUs, {at_once} runs at once: {len(dealt[0])} each; left idle: GPU {', '.join(idle)}")
    with _only_one(study):
        refresh = _Refresh(study)
        print(f"page: {study.page}", flush=True)
        refresh.draw(live=True)
        completed = run_in_turn(study, dealt, refresh, _say)
        refresh.draw(live=False)
    progress = _progress(study, on_slurm=False)
    print(f"\n{headline(progress)}\n\n{status_table(progress)}\n\npage: {study.page}")
    if not completed:
        print("stopped; the same command goes on")
        return STOPPED
    return 0 if all(run.state == FINISHED for run in progress) else 1


def _say(text: str) -> None:
    print(text, flush=True)


class _Refresh:
    """Draws the page when it is due and something was recorded since."""

    def __init__(self, study: Study):
        self.study = study
        self.drawn_at = 0.0
        self.drawn: list[RunProgress] = []

    def __call__(self) -> None:
        if time.monotonic() - self.drawn_at >= REFRESH_S:
            self.draw(live=True)

    def draw(self, live: bool) -> None:
        progress = _progress(self.study, on_slurm=False)
        if progress != self.drawn or not live:
            try:
                write_page(self.study, progress, live)
            except UserError as error:  # a full disk; training has its own ways with that
                _say(f"megasink: {error}")
        for run, before in zip(progress, self.drawn, strict=False):
            if run.state == RUNNING and run.step > before.step:
                loss = "not finite" if run.loss is None else f"{run.loss:.4f}"
                _say(f"  {run.run.name}: step {run.step}/{run.total}, loss {loss}, {clock(run.remaining_s)} left")
        self.drawn, self.drawn_at = progress, time.monotonic()


def _only_one(study: Study) -> filelock.FileLock:
    """The study's lock, taken: two of these would start every run twice.

    Raises:
        UserError: another process holds it, or nothing can be written there.
    """
    lock = filelock.FileLock(study.out / ".study.lock")
    try:
        study.out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{study.out}: another process runs this study; --status shows how far it is") from None
    except OSError as error:
        raise UserError(f"{study.out}: cannot be written to ({error.strerror}); choose another `out:`") from None
    return lock
