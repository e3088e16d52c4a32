"""Which rank is slow. Ranks wait for each other in every step, so a step's time is the slowest rank's on all of them.

Instead each rank now and then times the same piece of work alone (a throttled or shared device shows), and how long its
steps waited for data.
"""

import itertools
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from megasink.parallel.late_copy import LateCopy

SLOW = 1.5
"""Times the median from which a rank is worth a line ..."""
IN_A_ROW = 3
"""... if it is the same rank so many readings in a row."""
FIGURES = ("slowest_rank", "slowest_over_median", "data_wait_s")


class StragglerReport:
    """One per rank; every rank calls `begin` and `read` at the same steps. Nothing in it waits for queued work.

    Args:
        tell: takes an event for events.jsonl and a line for the user; called on every rank.
    """

    def __init__(self, device: torch.device, tell: Callable[[dict, str], None]):
        size = 4096 if device.type == "cuda" else 256
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.operand = torch.ones(size, size, device=device, dtype=dtype)
        self.device = device
        self.tell = tell
        self.data_wait_s = 0.0
        """Added to by the loop."""
        self._slow: list[int] = []
        self._gathered: tuple[int, LateCopy] | None = None

    def begin(self, step: int, steps: int) -> None:
        """With a logged step, `steps` after the one before: time this rank's work behind what its device has queued."""
        self._step, self._wait_s, self.data_wait_s = step, self.data_wait_s / steps, 0.0
        self._work_s = self._timed_work()

    def read(self) -> dict:
        """When a later step is on its way: tell the other ranks, and say what they told at the reading before.

        slowest_rank, slowest_over_median (of the timed work), data_wait_s (per step, the longest of all ranks); None at
        the first reading.
        """
        figures = dict.fromkeys(FIGURES) if self._gathered is None else self._figures(*self._gathered)
        mine = torch.tensor([self._work_s(), self._wait_s])
        if self.device.type == "cuda":
            mine = mine.pin_memory().to(self.device, non_blocking=True)
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        self._gathered = self._step, LateCopy(torch.stack(everyone))
        return figures

    def _figures(self, step: int, everyone: LateCopy) -> dict:
        work, wait = everyone.wait().T.tolist()
        slowest = max(range(len(work)), key=work.__getitem__)
        ratio = work[slowest] / sorted(work)[(len(work) - 1) // 2]
        self._slow = [*self._slow, slowest][-IN_A_ROW:] if ratio > SLOW else []
        if len(self._slow) == IN_A_ROW and set(self._slow) == {slowest}:
            self._slow = []
            event = {"event": "straggler", "step": step, "rank": slowest, "over_median": ratio}
            self.tell(event, f"rank {slowest} needs {ratio:.1f} times as long as the median rank for the same work")
        return dict(zip(FIGURES, (slowest, ratio, max(wait)), strict=True))

    def _timed_work(self) -> Callable[[], float]:
        """Begin a matrix product, three times; the returned function gives the seconds of the fastest."""
        if self.device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            for mark in marks[:-1]:
                mark.record()
                torch.mm(self.operand, self.operand)
            marks[-1].record()

            def fastest() -> float:
                marks[-1].synchronize()
                return min(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) * 1e-3

            return fastest
        times = []
        for _ in range(3):
            began = time.perf_counter()
            torch.mm(self.operand, self.operand)
            times.append(time.perf_counter() - began)
        return lambda: min(times)
