"""Steps whose loss or gradients are not finite, and losses that jump: counted, reported with their data, one step late.

The optimizer leaves weights and moments alone on such a step by itself (megasink.train.bf16_step, clipping, DeepSpeed).
"""

import math
import statistics
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from megasink.train.late import LateScalars

SPIKE_WINDOW = 64
"""A loss is compared with the median of this many before it."""
SPIKE_DEVIATIONS = 8.0
"""... and is a spike from so many median absolute deviations above it (and 10 %), both to be rare in a sound run."""


class BadNumbers:
    """Follows loss and gradient norm of every step, the same on every rank.

    Args:
        report: takes an event for events.jsonl and a line for the user; called on every rank.
    """

    def __init__(self, max_in_a_row: int, global_batch_size: int, skipped: int, report: Callable[[dict, str], None]):
        self.max_in_a_row = max_in_a_row
        self.global_batch_size = global_batch_size
        self.skipped = skipped
        """Skipped steps of the whole run."""
        self.in_a_row = 0
        self.report = report
        self._late = LateScalars()
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def follow(self, step: int, loss: Tensor, grad_norm: float | Tensor | None) -> None:
        """Take note of a step that was just launched; nothing is waited for."""
        loss = loss.detach().float().reshape(())
        if not isinstance(grad_norm, Tensor):
            grad_norm = torch.full_like(loss, 0.0 if grad_norm is None else grad_norm)
        self._late.put(step, torch.stack([loss, grad_norm.detach().float().reshape(())]))

    def check(self, before: int) -> bool:
        """Look at all steps before `before` that were not looked at; True if too many in a row were bad."""
        for step, (loss, grad_norm) in self._late.take(before):
            if math.isfinite(loss) and math.isfinite(grad_norm) and grad_norm >= 0:
                self.in_a_row = 0
                self._check_spike(step, loss)
            else:
                self.skipped += 1
                self.in_a_row += 1
                self._tell("skipped_step", step, loss, f"loss {loss}, gradient norm {grad_norm}: skipped", grad_norm)
        return self.in_a_row >= self.max_in_a_row

    def _check_spike(self, step: int, loss: float) -> None:
        if len(self._losses) == SPIKE_WINDOW:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(before - median) for before in self._losses)
            if loss > median * 1.1 and loss > median + SPIKE_DEVIATIONS * deviation:
                self._tell("loss_spike", step, loss, f"loss {loss:.4f} after a median of {median:.4f}", None)
        self._losses.append(loss)

    def _tell(self, event: str, step: int, loss: float, what: str, grad_norm: float | None) -> None:
        first = (step - 1) * self.global_batch_size
        last = first + self.global_batch_size - 1
        described = {
            "event": event,
            "step": step,
            "loss": loss if math.isfinite(loss) else str(loss),
            "first_sample": first,
            "last_sample": last,
        }
        if grad_norm is not None:
            described["grad_norm"] = grad_norm if math.isfinite(grad_norm) else str(grad_norm)
        self.report(described, f"step {step}: {what}; samples {first} to {last} of the data order")
