"""A rank of megasink's training command that measures itself: run() with the words FOLDER STEPS PROFILED FLAGS.

After STEPS steps it profiles PROFILED more, writes FOLDER/rank_R.json (peak memory; on the first and the last rank what
the profiler saw) and ends where it stands, without the checkpoint that ends a run.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from megasink.data.atomic import write_atomic
from megasink.train import loop, main
from megasink.train.trace import read_trace
from multi_gpu.exposed import communication

PATIENCE_S = 60.0


def run() -> None:
    folder, steps, profiled, *flags = sys.argv[1:]
    measure(Path(folder), int(steps), int(profiled))
    main(flags)


def measure(folder: Path, steps: int, profiled: int) -> None:
    """Arm the training loop of this process."""
    plain_step = loop._train_step
    profiler = profile_of_ranks()
    done = 0

    def step(run: loop.Run, *arguments):
        nonlocal done
        if done == steps:
            synchronize()
            profiler.start()
        loss = plain_step(run, *arguments)
        done += 1
        if done == steps + profiled:
            synchronize()
            profiler.stop()
            finish(folder, profiler, profiled)
        return loss

    loop._train_step = step


def profile_of_ranks() -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def finish(folder: Path, profiler: torch.profiler.profile, profiled: int) -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found: dict = {"peak_gib": None}
    if torch.cuda.is_available():
        allocator = torch.cuda.memory_stats()
        found["peak_gib"] = allocator["allocated_bytes.all.peak"] / 2**30
        found["reserved_gib"] = allocator["reserved_bytes.all.peak"] / 2**30
        # calls of cudaMalloc and cudaFree, which stop the device
        found["device_allocations"], found["device_frees"] = allocator["num_device_alloc"], allocator["num_device_free"]
        if rank in (0, ranks - 1):
            trace = folder / f"trace_{rank}.json"
            profiler.export_chrome_trace(str(trace))
            found["profile"] = communication(read_trace(trace).kernels, profiled)
            trace.unlink()
    write_atomic(folder / f"rank_{rank}.json", json.dumps(found).encode())
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.glob("rank_*.json"))) < ranks and time.monotonic() < deadline:
        time.sleep(0.02)
    os._exit(0)
