"""The runs of a study on this machine, one after the other or several at once."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import psutil

from megasink.errors import UserError
from megasink.study.run_folder_reader import ENDED, FINISHED, OVER, is_locked, read_progress
from megasink.study.slurm import environment
from megasink.study.study_file import Study, StudyRun
from megasink.train.exit_codes import BROKEN, STOPPED

_POLL_S = 0.5
_TRIES = 3
"""Launches in a row that end with 75 or 76 and no further step; then the run is left and the next begins."""


class Interruption:
    """Ctrl-C or SIGTERM: the runs in progress save and end, the study ends. A second time: they are killed."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Interruption":
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._on_signal) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.count += 1


@dataclass(frozen=True)
class Place:
    """Where one run goes on at a time, beside those in other places."""

    gpus: list[str]
    """Empty: as the environment says."""
    is_only: bool
    ports: set[int]
    """Given to runs in any place so far."""

    def variables(self) -> dict[str, str]:
        """The environment of the next launch."""
        variables = environment()
        variables.pop("RANK", None)  # the launcher gives it
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        if not self.is_only or "MASTER_PORT" not in variables:
            variables["MASTER_PORT"] = str(_free_port(self.ports))
        return variables


def run_in_turn(study: Study, dealt: list[list[str]], refresh: Callable[[], None], say: Callable[[str], None]) -> bool:
    """Start or continue every run that is neither finished nor diverged; False if interrupted.

    `dealt`: for each of the runs that may go on at once, the GPUs it gets; none: what the environment says.
    `refresh` is called often while a run is going; it decides how often something is worth doing.
    """
    queue, ports = iter(enumerate(study.runs, 1)), set()
    with Interruption() as interruption:
        lanes = [_work_off(study, queue, Place(gpus, len(dealt) == 1, ports), interruption, say) for gpus in dealt]
        try:
            while lanes := [lane for lane in lanes if next(lane, False)]:
                time.sleep(_POLL_S)
                refresh()
        finally:  # after an error
            for lane in lanes:
                lane.close()
    return not interruption.count


def _work_off(
    study: Study,
    queue: Iterator[tuple[int, StudyRun]],
    place: Place,
    interruption: Interruption,
    say: Callable[[str], None],
) -> Generator[bool, None, None]:
    """Run what is left of `queue`, which all places share; yields True as long as there is something to wait for."""
    for number, run in queue:
        title = f"[{number}/{len(study.runs)}] {run.name}"
        if is_locked(run.folder):
            say(f"{title}: another process is training it; waiting for it to end")
        while is_locked(run.folder) and not interruption.count:
            yield True
        yield from _run_to_its_end(study, run, title, place, interruption, say)
        if interruption.count:
            return


def _run_to_its_end(
    study: Study,
    run: StudyRun,
    title: str,
    place: Place,
    interruption: Interruption,
    say: Callable[[str], None],
) -> Generator[bool, None, None]:
    before, tries = read_progress(run), 0
    if before.state in OVER:
        say(f"{title}: {before.state}{' after step ' + str(before.step) if before.state != FINISHED else ''} before")
        return
    while tries < _TRIES and not interruption.count:
        say(f"{title}: {'going on after' if before.step else 'from'} step {before.step} of {before.total}; {run.log}")
        try:
            code = yield from _launch(study, run, place, interruption)
        except OSError as error:
            raise UserError(f"{run.log}: cannot be written ({error.strerror}); mend it, then start again") from None
        after = read_progress(run)
        say(f"{title}: {after.state} at step {after.step}{': ' + after.note if after.note else ''}")
        if code not in (STOPPED, BROKEN):
            return
        tries = 0 if after.step > before.step else tries + 1
        before = after


def _launch(study: Study, run: StudyRun, place: Place, interruption: Interruption) -> Generator[bool, None, int]:
    """One start of the launch script, to its end; returns its exit code and notes it in the log."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "ab") as log:
        process = subprocess.Popen(
            ["bash", str(study.script), *run.flags],
            env=place.variables(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for us; the launchers would end ranks before they have saved
        )
        asked: set[int] = set()
        try:
            while process.poll() is None:
                if interruption.count > 1:
                    os.killpg(process.pid, signal.SIGKILL)
                elif interruption.count:
                    _ask_to_stop(process.pid, asked)
                yield True
        except BaseException:  # closed: without us nobody would stop it
            _ask_to_stop(process.pid, asked)
            process.wait()
            raise
        log.write(f"{ENDED}{process.returncode}\n".encode())
    return process.returncode


def _ask_to_stop(root: int, asked: set[int]) -> None:
    """SIGTERM for each rank (or srun, which passes it on), not for the launchers between: they kill ranks that save."""
    for process in psutil.Process(root).children(recursive=True):
        try:
            is_rank = "RANK" in process.environ() and "RANK" not in process.parent().environ()
            if (is_rank or process.name() == "srun") and process.pid not in asked:
                asked.add(process.pid)
                process.send_signal(signal.SIGTERM)
        except (psutil.Error, AttributeError):  # it has just ended
            continue


def _free_port(given: set[int]) -> int:
    """One that nobody listens on and no other run is about to; it is added to `given`."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in given:
            given.add(port)
            return port
