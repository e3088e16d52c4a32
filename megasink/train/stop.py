"""When to stop early: a signal or the time limit, agreed by all ranks without a host synchronisation."""

import signal
import time

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Any rank's wish to stop becomes every rank's decision one step later.

    The flag is all-reduced each step and read at the next, when it has long arrived.
    """

    def __init__(self, device: torch.device, exit_duration_in_mins: float | None):
        self.started = time.monotonic()
        self.deadline = None if exit_duration_in_mins is None else 60.0 * exit_duration_in_mins
        self.reason: str | None = None
        self.device = device
        self._pending: tuple[torch.Tensor, dist.Work | None] | None = None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def agreed(self) -> bool:
        """Call once per step on every rank; True on all of them at the same step."""
        stop = False
        if self._pending is not None:
            flag, work = self._pending
            if work is not None:
                work.wait()
            stop = bool(flag.item())
        if self.deadline is not None and time.monotonic() - self.started > self.deadline:
            self.reason = self.reason or "time limit reached"
        flag = torch.tensor(float(self.reason is not None), device=self.device)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        self._pending = (flag, work)
        return stop

    def _on_signal(self, number: int, _frame) -> None:
        if self.reason is not None:  # a second signal ends at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.reason = f"received {signal.Signals(number).name}"
