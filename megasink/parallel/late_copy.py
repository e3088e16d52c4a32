"""A tensor on its way from the device to the host, without a wait for what the device still has to do."""

import torch
from torch import Tensor


class LateCopy:
    """Begins to copy `value` where it is made; `wait()` gives the copy. On a CPU it is a plain copy."""

    def __init__(self, value: Tensor):
        value = value.detach()
        self._arrival: torch.cuda.Event | None = None
        if value.is_cuda:
            self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()
        else:
            self._host = value.clone()

    def wait(self) -> Tensor:
        """The copy, as soon as the device has come to it."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._host
