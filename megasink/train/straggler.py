"""Which rank is slow. Ranks wait for each other in every step, so a step's time is the slowest rank's on all of them.

Instead each rank now and then times the same piece of work alone (a throttled or shared device shows), and how long its
steps waited for data.
"""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

SLOW = 1.5
"""Times the median from which a rank is worth a line ..."""
IN_A_ROW = 3
"""... if it is the same rank so many readings in a row."""


class StragglerReport:
    """One per rank; every rank calls `read` at the same steps.

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

    def read(self, step: int, steps: int) -> dict:
        """slowest_rank, slowest_over_median (of the timed work), data_wait_s (per step, the longest of all ranks)."""
        mine = torch.tensor([self._timed_work(), self.data_wait_s / steps], device=self.device)
        self.data_wait_s = 0.0
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        work, wait = torch.stack(gathered).T.tolist()
        slowest = max(range(len(work)), key=work.__getitem__)
        ratio = work[slowest] / sorted(work)[(len(work) - 1) // 2]
        self._slow = [*self._slow, slowest][-IN_A_ROW:] if ratio > SLOW else []
        if len(self._slow) == IN_A_ROW and set(self._slow) == {slowest}:
            self._slow = []
            event = {"event": "straggler", "step": step, "rank": slowest, "over_median": ratio}
            self.tell(event, f"rank {slowest} needs {ratio:.1f} times as long as the median rank for the same work")
        return {"slowest_rank": slowest, "slowest_over_median": ratio, "data_wait_s": max(wait)}

    def _timed_work(self) -> float:
        """Seconds of a matrix product, the best of three."""
        times = []
        for _ in range(3):
            began = time.perf_counter()
            torch.mm(self.operand, self.operand)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - began)
        return min(times)
