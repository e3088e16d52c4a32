"""Jobs of several ranks on this host, without a launcher that would end the others when one ends."""

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from megasink.errors import UserError
from tests.helpers.forking import FORK_SERVER
from tests.helpers.jobs import Job

# CUDA does not survive a fork; without it a fork saves each rank the seconds of importing
CONTEXT = multiprocessing.get_context("spawn") if torch.cuda.is_available() else FORK_SERVER


@dataclass
class Ended:
    """How a job ended.

    Attributes:
        codes: exit codes by rank; negative: the signal that ended it; None: it had to be killed after the time limit.
        at: time.time() of each rank's end.
        log: what all ranks said.
    """

    codes: list[int | None]
    at: list[float]
    log: Path

    @property
    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:160] if lines else "it said nothing"


def run_job(
    program: str,
    flags: list[object],
    ranks: int,
    log: Path,
    limit_s: float,
    environ: dict[str, str] | None = None,
    awaited: set[int] | None = None,
) -> Ended:
    """`python -c PROGRAM FLAGS` on every rank, to the end of all, of those `awaited`, or of the time.

    Nothing is left running.
    """
    awaited = set(range(ranks)) if awaited is None else awaited
    job = Job(*flags, ranks=ranks, program=program, environ=environ, context=CONTEXT)
    ends: dict[int, float] = {}
    deadline = time.monotonic() + limit_s
    try:
        while not awaited <= ends.keys() and time.monotonic() < deadline:
            for rank, process in enumerate(job.ranks):
                if rank not in ends and process.exitcode is not None:
                    ends[rank] = time.time()
            time.sleep(0.02)
    finally:
        late = [rank for rank, process in enumerate(job.ranks) if process.exitcode is None]
        for rank in late:
            job.ranks[rank].kill()
        outcome = job.wait()
        log.write_text(outcome.output)
    codes = [None if rank in late else code for rank, code in enumerate(outcome.codes)]
    return Ended(codes, [ends.get(rank, time.time()) for rank in range(ranks)], log)


def ranks_here(asked: int) -> int:
    """How many ranks there may be: the GPUs of this machine, or those asked for; on a CPU 4.

    Raises:
        UserError: more are asked for than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus and asked > gpus:
        raise UserError(f"--ranks {asked}: this machine has {gpus} GPUs; lower it")
    return asked or gpus or 4


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def make_folder(path: str) -> Path:
    """Raises UserError if it cannot be made."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name another folder") from None
    return folder.resolve()


def chosen(flag: str, words: str, known: list[str]) -> list[str]:
    """The comma-separated words, each of which must be known. Raises UserError."""
    found = words.split(",") if words else known
    for word in found:
        if word not in known:
            raise UserError(f"{flag}: {word!r} is not known; choose of {', '.join(known)}")
    return found
