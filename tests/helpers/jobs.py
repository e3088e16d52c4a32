"""Training jobs in real processes: one per rank, over gloo, with a tiny model on a tiny data set."""

import json
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np

from megasink.data.indexed import IndexedDatasetWriter
from tests.helpers.forking import FORK_SERVER

ROOT = Path(__file__).parents[2]
RANK_PROGRAM = "from megasink.train import main; main()"
TINY = shlex.split(
    """
    --num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4 --num-query-groups 2 --vocab-size 64
    --seq-length 16 --micro-batch-size 2 --global-batch-size 4 --precision fp32 --lr 1e-2 --min-lr 1e-3 --log-interval 1
    --wandb-mode disabled
    """
)


def write_tokens(prefix: Path, documents: int = 60, vocab_size: int = 64) -> Path:
    """Random documents of 5 to 40 tokens; returns the prefix."""
    generator = np.random.default_rng(3)
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for length in generator.integers(5, 40, size=documents):
            writer.add_document(generator.integers(vocab_size, size=length))
    return prefix


@dataclass
class Outcome:
    """How a job ended: exit codes by rank, and what all ranks said."""

    codes: list[int]
    output: str

    def lines(self, beginning: str) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith(beginning)]


class Job:
    """`megasink.train.main` (or another program) on every rank, started at once.

    Each rank is a process of its own, forked from one that has imported torch and DeepSpeed already; or another
    `context` of multiprocessing makes it.
    """

    def __init__(
        self,
        *flags: object,
        ranks: int = 1,
        program: str = RANK_PROGRAM,
        environ: dict[str, str] | None = None,
        context: BaseContext = FORK_SERVER,
    ):
        common = os.environ | {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0" if ranks == 1 else str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        self._folder = tempfile.TemporaryDirectory(prefix="megasink-job-")
        self._said = [Path(self._folder.name) / f"{rank}.txt" for rank in range(ranks)]
        words = [str(flag) for flag in flags]
        self.ranks = []
        for rank, said in enumerate(self._said):
            variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environ or {})
            self.ranks.append(context.Process(target=_run_rank, args=(program, words, variables, str(said))))
            self.ranks[-1].start()

    def ended(self) -> bool:
        """Whether any rank has."""
        return any(rank.exitcode is not None for rank in self.ranks)

    def until_said(self, text: str, timeout: float = 120.0) -> None:
        """Return when a rank has said this."""
        self.until(lambda: any(said.exists() and text in said.read_text() for said in self._said), timeout)

    def until(self, condition: Callable[[], bool], timeout: float = 120.0) -> None:
        """Look again and again until it holds; a job that ends before, or a time-out, fails the test."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.ended() or time.monotonic() > deadline:
                raise AssertionError(self.wait(1.0).output)
            time.sleep(0.005)

    def wait(self, timeout: float = 600.0) -> Outcome:
        """Until every rank has ended; a rank that outlives `timeout` seconds fails the test."""
        deadline = time.monotonic() + timeout
        try:
            for rank in self.ranks:
                rank.join(max(0.0, deadline - time.monotonic()))
            late = [number for number, rank in enumerate(self.ranks) if rank.exitcode is None]
        finally:
            for rank in self.ranks:
                rank.kill()
                rank.join()
        output = "".join(said.read_text(errors="replace") for said in self._said if said.exists())
        self._folder.cleanup()
        if late:
            raise TimeoutError(f"ranks {late} did not end within {timeout:.0f} s\n{output}")
        return Outcome([rank.exitcode for rank in self.ranks], output)


def _run_rank(program: str, flags: list[str], environ: dict[str, str], said: str) -> None:
    """In a new process: what `python -u -c program flags` does."""
    os.environ.clear()
    os.environ.update(environ)
    with open(said, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    sys.argv = ["-c", *flags]
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # OMP_NUM_THREADS comes too late for it
    exec(program, {"__name__": "__main__"})


def train(*flags: object, ranks: int = 1, expect: int = 0, **more) -> Outcome:
    """Run a tiny job to its end and check every rank's exit code."""
    outcome = Job(*TINY, *flags, ranks=ranks, **more).wait()
    assert outcome.codes == [expect] * ranks, outcome.output
    return outcome


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


TIMES = {"step_time_s", "tokens_per_second", "mfu", "slowest_rank", "slowest_over_median", "data_wait_s"}


def metrics_without_times(run: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in metrics(run)]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in metrics(run)]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
