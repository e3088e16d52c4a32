"""Values read one step after they were made, when they have long arrived: reading them keeps no device waiting."""

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class LateMaximum:
    """The maximum over all ranks of a few numbers, one step late."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pending: tuple[Tensor, dist.Work | torch.cuda.Event] | None = None

    def exchange(self, values: Sequence[float]) -> list[float] | None:
        """Give this step's values, get the maxima of the step before (None at the first); every rank must call this."""
        arrived = None
        if self._pending is not None:
            result, arrival = self._pending
            if isinstance(arrival, torch.cuda.Event):
                arrival.synchronize()
            else:
                arrival.wait()
            arrived = result.tolist()
        self._pending = self._begin(values)
        return arrived

    def _begin(self, values: Sequence[float]) -> tuple[Tensor, dist.Work | torch.cuda.Event]:
        mine = torch.tensor(values, dtype=torch.float64)
        if self.device.type != "cuda":
            return mine, dist.all_reduce(mine, op=dist.ReduceOp.MAX, async_op=True)
        on_device = mine.pin_memory().to(self.device, non_blocking=True)
        dist.all_reduce(on_device, op=dist.ReduceOp.MAX, async_op=True).wait()  # the stream waits, not the host
        return _to_host(on_device)


class LateScalars:
    """A few numbers of each step on their way from the device to the host."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: int, value: Tensor) -> None:
        """value: [n], on the device."""
        host, arrival = _to_host(value.detach()) if value.is_cuda else (value.detach().clone(), None)
        self._under_way.append((step, host, arrival))

    def take(self, before: int) -> list[tuple[int, list[float]]]:
        """(step, values) of all steps before `before`, oldest first; waits for those that are still under way."""
        taken = []
        while self._under_way and self._under_way[0][0] < before:
            step, host, arrival = self._under_way.popleft()
            if arrival is not None:
                arrival.synchronize()
            taken.append((step, host.tolist()))
        return taken


def _to_host(value: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return host, arrival
