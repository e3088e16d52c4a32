"""Values read one step after they were made, when they have long arrived: reading them keeps no device waiting."""

import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.parallel.late_copy import LateCopy


class LateMaximum:
    """The maximum over all ranks of a few numbers, one step late."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pending: tuple[Tensor, dist.Work] | LateCopy | None = None

    def exchange(self, values: Sequence[float]) -> list[float] | None:
        """Give this step's values, get the maxima of the step before (None at the first); every rank must call this."""
        arrived = None
        if isinstance(self._pending, LateCopy):
            arrived = self._pending.wait().tolist()
        elif self._pending is not None:
            result, work = self._pending
            work.wait()
            arrived = result.tolist()
        self._pending = self._begin(values)
        return arrived

    def _begin(self, values: Sequence[float]) -> tuple[Tensor, dist.Work] | LateCopy:
        mine = torch.tensor(values, dtype=torch.float64)
        if self.device.type != "cuda":
            return mine, dist.all_reduce(mine, op=dist.ReduceOp.MAX, async_op=True)
        on_device = mine.pin_memory().to(self.device, non_blocking=True)
        dist.all_reduce(on_device, op=dist.ReduceOp.MAX, async_op=True).wait()  # the stream waits, not the host
        return LateCopy(on_device)


class LateScalars:
    """A few numbers of each step on their way from the device to the host."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, LateCopy]] = deque()

    def put(self, step: int, value: Tensor) -> None:
        """value: [n], on the device."""
        self._under_way.append((step, LateCopy(value)))

    def take(self, before: int) -> list[tuple[int, list[float]]]:
        """(step, values) of all steps before `before`, oldest first; waits for those that are still under way."""
        taken = []
        while self._under_way and self._under_way[0][0] < before:
            step, copy = self._under_way.popleft()
            taken.append((step, copy.wait().tolist()))
        return taken


class Instant:
    """The moment at which the device has done all that it was given so far; on a CPU that is now."""

    def __init__(self, device: torch.device):
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._at = time.monotonic()

    def seconds_since(self, earlier: "Instant") -> float:
        """Both must have come."""
        if self._event is not None:
            return earlier._event.elapsed_time(self._event) * 1e-3
        return self._at - earlier._at


class LateActions:
    """What needs numbers of a step is done when the next step is on its way: the device never waits for the host."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def put(self, action: Callable[[], None]) -> None:
        self._due.append(action)

    def settle(self) -> None:
        """Do what is due, in order."""
        due, self._due = self._due, []
        for action in due:
            action()
