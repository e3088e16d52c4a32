"""megasink through its training command, data loader and run folder included.

`megasink`: V-scale on, light sink statistics gathered in every step. `megasink-plain`: neither.
`megasink-fp8`: megasink with --fp8 hybrid; its MFU counts against the bf16 peak as everywhere.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megasink.data.indexed import IndexedDatasetWriter
from throughput.work import Work, result

_ON = ("--v-scale", "on", "--sink-stats", "light", "--sink-stats-interval", "1")
FEATURES = {
    "megasink": _ON,
    "megasink-plain": ("--v-scale", "off", "--sink-stats", "off"),
    "megasink-fp8": (*_ON, "--fp8", "hybrid"),
}


def measure(work: Work) -> Iterator[dict]:
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        tokens = write_tokens(Path(folder) / "tokens", work.shape.vocab_size)
        for accumulate in work.accumulate:
            yield train(work, accumulate, tokens, Path(folder) / f"run{accumulate}")


def train(work: Work, accumulate: int, tokens: Path, run: Path) -> dict:
    """One training run of its own process; step times are those of its metrics.jsonl."""
    last_step = work.warmup + work.steps
    flags = [
        *work.shape.flags(),
        *("--micro-batch-size", work.micro_batch_size, "--global-batch-size", work.micro_batch_size * accumulate),
        *("--train-iters", last_step + 1000, "--data-path", tokens, "--save", run, "--save-interval", 0),
        *("--lr", 3e-4, "--min-lr", 3e-5, "--log-interval", 1, "--wandb-mode", "disabled"),
        *FEATURES[work.case],
        *work.megasink_flags,
    ]
    if not work.compile:
        flags.append("--no-compile")
    report = run.with_suffix(".report")
    program = Path(__file__).with_name("train_and_report.py")
    paths = [str(program.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, program, report, run / "metrics.jsonl", last_step, *flags]
    ended = subprocess.run([str(word) for word in command], env=environment)
    if ended.returncode:
        raise RuntimeError(f"megasink.train ended with exit code {ended.returncode}")
    metrics = [json.loads(line) for line in _complete_lines(run / "metrics.jsonl")]
    seconds = [record["step_time_s"] for record in metrics if work.warmup < record["step"] <= last_step]
    more = {"first_step_s": metrics[0]["step_time_s"], "loss": metrics[-1]["loss"]}
    return result(accumulate, seconds, **more) | json.loads(report.read_text())


def write_tokens(prefix: Path, vocab_size: int) -> Path:
    """4M random tokens in 200 documents."""
    generator = np.random.default_rng(0)
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for _ in range(200):
            writer.add_document(generator.integers(vocab_size, size=20_000))
    return prefix


def _complete_lines(path: Path) -> list[str]:
    """Without a last one that the end of the process may have torn."""
    return path.read_text().split("\n")[:-1]
