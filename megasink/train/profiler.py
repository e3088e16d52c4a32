"""`--profile` and `--memory-snapshot`: where a few steps' time and memory go, on rank 0, into the run folder."""

import contextlib
import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megasink.data.atomic import write_atomic
from megasink.train.trace import OPTIMIZER_RANGE, read_trace, summarise, table

WARM_STEPS = 5
"""Left out at the start: they compile, allocate and fill caches."""
SNAPSHOT_STEPS = 3
"""Whose allocations are recorded where --profile does not say how many."""


class StepProfiler:
    """Times `steps` steps after the first WARM_STEPS of this start, then runs as many under torch's profiler.

    Writes `after_step_N.trace.json.gz` (for ui.perfetto.dev), `after_step_N.json` and `.txt` (time by kind, also
    shown), and with `memory` `after_step_N.memory.pickle` (for pytorch.org/memory_viz); the profiled steps follow N.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        memory: bool,
        device: torch.device,
        optimizer: object,
        say: Callable[[str], None],
    ):
        self.folder = folder
        self.device = device
        self.optimizer = optimizer
        self.say = say
        if memory and device.type != "cuda":
            say("megasink: --memory-snapshot needs a GPU; there is none here, so none is written")
            memory = False
        self.profiles, self.memory = steps > 0, memory
        self.steps = max(steps, SNAPSHOT_STEPS if memory and steps == 0 else 0)
        """0 when there is nothing (more) to do."""
        self._done = 0
        """Steps since the start."""
        self._began = self._step_s = 0.0
        self._running = contextlib.ExitStack()
        self._profiler: profile | None = None

    def before_step(self, step: int) -> None:
        """`step` steps are done, the next one begins."""
        if self.steps == 0:
            return
        if self._done == WARM_STEPS:
            self._wait()
            self._began = time.monotonic()
        elif self._done == WARM_STEPS + self.steps:
            self._wait()
            self._step_s = (time.monotonic() - self._began) / self.steps
            self._start()
        elif self._done == WARM_STEPS + 2 * self.steps:
            self._wait()
            self._stop(step - self.steps)
        self._done += 1

    def close(self, step: int) -> None:
        """The run ends after `step` steps."""
        self.before_step(step)
        if self.steps > 0:
            self._running.close()
            self.say(
                f"megasink: no profile: that takes {WARM_STEPS + 2 * self.steps} steps ({WARM_STEPS} to warm up, "
                f"{self.steps} timed, {self.steps} profiled), and the run ended before"
            )

    def _start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        if self.memory:
            torch.cuda.memory._record_memory_history(max_entries=200_000)
            self._running.callback(torch.cuda.memory._record_memory_history, enabled=None)
        if self.profiles:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profiler = self._running.enter_context(profile(activities=activities))
            self._running.enter_context(optimizer_range(self.optimizer))

    def _stop(self, step: int) -> None:
        name = self.folder / f"after_step_{step:08d}"
        if self.memory:
            torch.cuda.memory._dump_snapshot(f"{name}.memory.pickle")
            self.say(f"megasink: memory snapshot: {name}.memory.pickle (pytorch.org/memory_viz shows it)")
        self._running.close()
        if self._profiler is not None:
            plain = Path(f"{name}.trace.json")
            self._profiler.export_chrome_trace(str(plain))
            summary = summarise(read_trace(plain), self.steps, self._step_s)
            with open(plain, "rb") as source, gzip.open(f"{plain}.gz", "wb", compresslevel=5) as packed:
                shutil.copyfileobj(source, packed)
            plain.unlink()
            write_atomic(Path(f"{name}.json"), f"{json.dumps(summary, indent=1)}\n".encode())
            shown = table(summary)
            write_atomic(Path(f"{name}.txt"), f"{shown}\n".encode())
            self.say(f"megasink: {self.steps} steps profiled on rank 0: {plain}.gz (ui.perfetto.dev shows it)\n{shown}")
        self._profiler, self.steps = None, 0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def optimizer_range(optimizer: object) -> Iterator[None]:
    """Inside, the engine's optimizer step (norm, clipping, update, casts) has a range of its own in the trace."""
    plain_step = optimizer.step

    def step(*args, **kwargs):
        with record_function(OPTIMIZER_RANGE):
            return plain_step(*args, **kwargs)

    optimizer.step = step
    try:
        yield
    finally:
        del optimizer.step
