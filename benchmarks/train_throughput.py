"""Training throughput of megasink, its peers, a bare loop and the floor, on one device, at the same shape and work.

    python benchmarks/train_throughput.py --shape 1b --micro-batch-size 8 --accumulate 1,4 --steps 12 --out OUT

Each case runs in a process of its own. Prints a table; OUT/throughput.json has every step's time and is rewritten after
each case, OUT/*.log what the cases said. Peers that are not installed are rows that say so. See docs/performance.md.
"""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from throughput.provenance import BENCHMARKS, provenance, write_json
from throughput.report import OURS, PEERS, floor_parts, measured_row, table, with_ratios
from throughput.shapes import Shape, shape_named
from throughput.work import Work

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli

CASES = ("floor", "bare", *OURS, *PEERS)
NEEDS = {
    "megasink": ("deepspeed",),
    "megasink-plain": ("deepspeed",),
    "megasink-fp8": ("deepspeed",),
    "transformers": ("transformers",),
    "liger": ("transformers", "liger-kernel"),
    "liger-compiled": ("transformers", "liger-kernel"),
    "torchtitan": ("torchtitan",),
    "megatron": ("megatron-core",),
}


@dataclass
class ThroughputConfig:
    """What is measured. Lists are separated by commas."""

    cases: str = "floor,bare,megasink,transformers,liger,torchtitan,megatron"
    """Of floor, bare, megasink, megasink-plain, megasink-fp8, transformers, liger, liger-compiled, torchtitan or
    megatron."""
    shape: str = "1b"
    """Shapes: tiny, 0.1b, 0.3b, 1b, 7b-cut."""
    micro_batch_size: str = "8"
    """Sequences per forward pass."""
    seq_length: str = ""
    """Instead of the shape's length; a micro-batch then has as many sequences as keep its tokens, at least one."""
    accumulate: str = "1,4"
    """Micro-batches per optimizer step."""
    steps: int = 12
    """Timed steps, whose median counts."""
    warmup: int = 5
    """Untimed steps before those."""
    compile: bool = True
    """Compile on a GPU."""
    case_minutes: float = 4.0
    """A case that takes longer is ended and reported as such."""
    megasink_flags: str = ""
    """More flags for megasink's training command, as one word: "--zero-stage 0 --log-interval 4"."""
    scratch: str = "/dev/shm"
    """Folder for megasink's data and run folders, removed at the end (the untrained weights of 1b are some GB)."""
    out: str = "throughput-out"
    """Folder of throughput.json and the cases' logs."""


def main() -> None:
    config = parse_cli(
        ThroughputConfig, sys.argv[1:], "Measure training throughput on one device. Lists are separated by commas."
    )
    works = points(config)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name another folder") from None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about = provenance(
        "megasink.throughput/1", config, device, {package for names in NEEDS.values() for package in names}
    )
    rows = []
    for name, work in works:
        began = time.monotonic()
        new = run_case(name, work, config, about["device"], out)
        rows += new
        write_json(out / "throughput.json", about | {"rows": with_ratios(rows)})
        print(f"{work.case} ({name}, T {work.shape.seq_length}): {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join([f"{about['device']}, torch {about['versions']['torch']}", table(rows), "", floor_parts(rows)]))


def points(config: ThroughputConfig) -> list[tuple[str, Work]]:
    """Shape's name and work of each case at each point. Raises UserError for what cannot be measured."""
    cases = _chosen("--cases", config.cases, CASES)
    micro_batches = _numbers("--micro-batch-size", config.micro_batch_size)
    lengths = _numbers("--seq-length", config.seq_length) if config.seq_length else ()
    accumulate = _numbers("--accumulate", config.accumulate)
    if config.steps < 1:
        raise UserError(f"--steps {config.steps}: must be at least 1")
    if config.warmup < 2:
        raise UserError(f"--warmup {config.warmup}: must be at least 2, the first step compiles")
    if not os.access(config.scratch, os.W_OK):
        raise UserError(f"--scratch {config.scratch}: not a folder that can be written; name another")
    found = []
    for name in config.shape.split(","):
        for shape, micro_batch_size in _sizes(shape_named(name), micro_batches, lengths):
            work = Work(
                case="",
                shape=shape,
                micro_batch_size=micro_batch_size,
                accumulate=accumulate,
                steps=config.steps,
                warmup=config.warmup,
                compile=config.compile and torch.cuda.is_available(),
                scratch=config.scratch,
                megasink_flags=tuple(config.megasink_flags.split()),
            )
            found += [(name, replace(work, case=case)) for case in cases]
    return found


def run_case(name: str, work: Work, config: ThroughputConfig, device_name: str, out: Path) -> list[dict]:
    """The rows of one case at one point, one per number of accumulations, whatever happens to its process."""
    point = {
        "case": work.case,
        "shape": name,
        "seq_length": work.shape.seq_length,
        "micro_batch_size": work.micro_batch_size,
    }
    rows, status = [], missing(work.case)
    if status is None:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.jsonl"
            log = out / f"{work.case}-{name}-T{work.shape.seq_length}-b{work.micro_batch_size}.log"
            status = _run_process(work, Path(folder) / "work.json", results, log, config.case_minutes)
            lines = results.read_text().splitlines() if results.exists() else []
            rows = [measured_row(work.shape, point, json.loads(line), device_name) for line in lines]
    unmeasured = work.accumulate[len(rows) :]
    return rows + [point | {"accumulate": accumulate, "status": status} for accumulate in unmeasured]


def missing(case: str) -> str | None:
    """`not installed: ...` where a package of the case is absent."""
    absent = []
    for package in NEEDS.get(case, ()):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    return f"not installed: {', '.join(absent)}" if absent else None


def _run_process(work: Work, request: Path, results: Path, log: Path, minutes: float) -> str:
    """What became of the rows that the process did not deliver."""
    request.write_text(json.dumps(work.to_json()))
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "throughput.run_case", str(request), str(results)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with open(log, "w") as file:
        # a session of its own, so that a time-out also ends what the case started
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=60.0 * minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return f"ended after {minutes:g} minutes (--case-minutes); see {log}"
        except BaseException:  # Ctrl-C or SIGTERM to us: nothing may go on using the device
            os.killpg(process.pid, 9)
            raise
    said = log.read_text(errors="replace")
    if "OutOfMemoryError" in said:
        return "out of memory"
    last = said.strip().splitlines()[-1] if said.strip() else "it said nothing"
    return f"failed: {last[:120]}; see {log}"


def _sizes(shape: Shape, micro_batches: Sequence[int], lengths: Sequence[int]) -> list[tuple[Shape, int]]:
    sizes = [
        (replace(shape, seq_length=length), max(1, micro_batch * shape.seq_length // length))
        for micro_batch in micro_batches
        for length in lengths or (shape.seq_length,)
    ]
    return list(dict.fromkeys(sizes))


def _numbers(flag: str, words: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in words.split(","))
    except ValueError:
        raise UserError(f"{flag} {words}: give whole numbers such as 1,4") from None
    if min(numbers) < 1:
        raise UserError(f"{flag} {words}: must be at least 1")
    return numbers


def _chosen(flag: str, words: str, known: tuple[str, ...]) -> list[str]:
    chosen = words.split(",")
    for word in chosen:
        if word not in known:
            raise UserError(f"{flag}: {word!r} is not known; choose of {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    run_cli(main)
