"""Training jobs in real processes: one per rank, over gloo, with a tiny model on a tiny data set."""

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.data.indexed import IndexedDatasetWriter

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
    """`megasink.train.main` (or another program) on every rank, started at once."""

    def __init__(
        self, *flags: object, ranks: int = 1, program: str = RANK_PROGRAM, environ: dict[str, str] | None = None
    ):
        common = os.environ | {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0" if ranks == 1 else str(_free_port()),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-u", "-c", program, *map(str, flags)]
        self.ranks = [
            subprocess.Popen(
                command,
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environ or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]

    def wait(self, timeout: float = 600.0) -> Outcome:
        """Until every rank has ended; a rank that outlives `timeout` seconds fails the test."""
        try:
            output = "".join(rank.communicate(timeout=timeout)[0] for rank in self.ranks)
        finally:
            for rank in self.ranks:
                rank.kill()
        return Outcome([rank.returncode for rank in self.ranks], output)


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
