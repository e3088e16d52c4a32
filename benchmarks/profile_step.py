"""Where a training step's time goes: kernel time per category and the slowest kernels.

    python benchmarks/profile_step.py --shape 1b --micro-batch-size 8 --accumulate 1 --out OUT [-- any megasink flag]

Runs megasink's TrainEngine on random tokens in this process. Writes profile.json, and trace.json.gz with --keep-trace
(for chrome://tracing or ui.perfetto.dev).
"""

import gzip
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from throughput.shapes import shape_named

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.data.atomic import write_atomic
from megasink.errors import run_cli
from megasink.train.launch import init_environment
from megasink.train.trace import read_trace, summarise, table


@dataclass
class ProfileConfig:
    """What is profiled."""

    shape: str = "1b"
    """tiny, 0.1b, 0.3b, 1b or 7b-cut."""
    micro_batch_size: int = 8
    """Sequences per forward pass."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    steps: int = 3
    """Steps under the profiler; as many before them are timed without it, after 4 of warm-up."""
    statistics: bool = False
    """Gather light sink statistics in each step."""
    slowest: int = 25
    """Kernels listed."""
    out: str = "profile-out"
    """Folder of profile.json."""
    keep_trace: bool = False
    """Also keep the Chrome trace."""


def main() -> None:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    own = parse_cli(
        ProfileConfig, argv[:at], "Profile megasink's training step. Flags of the training command follow after --."
    )
    shape = shape_named(own.shape)
    run_flags = [
        *shape.flags(),
        *("--micro-batch-size", str(own.micro_batch_size)),
        *("--global-batch-size", str(own.micro_batch_size * own.accumulate)),
        *("--v-scale", "on", "--save", own.out, *argv[at + 1 :]),
    ]
    config = parse_cli(RunConfig, init_environment(run_flags))
    check_run(config, int(os.environ["WORLD_SIZE"]))
    result = profile(own, config)
    out = Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "profile.json", (json.dumps(result, indent=1) + "\n").encode())
    print(table(result))
    for place, times in result["waits_at"].items():
        print(f"the host waits {times}x at {place}")


def profile(own: ProfileConfig, config: RunConfig) -> dict:
    """Time steps without, then with the profiler. Times in milliseconds per step."""
    import torch

    from megasink.model.llama import blocks_of
    from megasink.parallel.layout import build_layout
    from megasink.stats.recorder import SinkRecorder
    from megasink.train.distributed import end_distributed, start_distributed
    from megasink.train.engine import TrainEngine
    from megasink.train.profiler import optimizer_range

    device = start_distributed()
    engine = TrainEngine(config, build_layout(), device)
    recorder = SinkRecorder(config.model, engine.layout, blocks_of(engine.model))
    generator = torch.Generator().manual_seed(0)
    length, vocabulary = config.model.seq_length, config.model.vocab_size

    def batch() -> list[tuple]:
        text = torch.randint(vocabulary, (own.accumulate, own.micro_batch_size, length + 1), generator=generator)
        tokens, labels = text[..., :-1].contiguous(), text[..., 1:].contiguous()
        if device.type == "cuda":
            tokens, labels = tokens.pin_memory(), labels.pin_memory()
        return list(zip(tokens, labels, strict=True))

    def step(micro_batches: list[tuple]) -> None:
        engine.set_learning_rate(1e-4)
        if own.statistics:
            recorder.start()
        engine.train_batch(micro_batches)
        if own.statistics:
            reports.append(recorder.report_late(0, engine.gradient_scale))
        if len(reports) > 1:  # a step late, as in training
            reports.pop(0)()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    reports = []
    batches = [batch() for _ in range(own.steps)]
    for _ in range(4):
        step(batches[0])
    times = []
    for micro_batches in batches:
        wait()
        began = time.perf_counter()
        step(micro_batches)
        wait()
        times.append(time.perf_counter() - began)

    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler, optimizer_range(engine.engine.optimizer):
        for micro_batches in batches:
            step(micro_batches)
        wait()
    waits = lines_that_wait(lambda: step(batches[0])) if device.type == "cuda" else {}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        found = read_trace(trace)
        if own.keep_trace:
            Path(own.out).mkdir(parents=True, exist_ok=True)
            with open(trace, "rb") as plain, gzip.open(Path(own.out) / "trace.json.gz", "wb") as packed:
                shutil.copyfileobj(plain, packed)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    end_distributed()
    summary = summarise(found, own.steps, statistics.median(times), own.slowest)
    return {"settings": vars(own), "device": where, "peak_gib": peak, "waits_at": waits} | summary


def lines_that_wait(step: Callable[[], None]) -> dict[str, int]:
    """`file:line` of what makes the host wait for the device in a step, as torch warns of it, and how often."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return dict(Counter(f"{warning.filename}:{warning.lineno}" for warning in caught))


if __name__ == "__main__":
    run_cli(main)
