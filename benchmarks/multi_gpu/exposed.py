"""How much of a step a device only communicates: while it also computes, communication costs nothing."""

from megasink.train.trace import Kernel, busy_time


def communication(kernels: list[Kernel], steps: int) -> dict[str, float]:
    """Milliseconds a step of NCCL's kernels, of the part in which nothing else ran, of all others, and of idling.

    An NCCL kernel also waits for the other ranks: their lateness, and a pipeline's bubble, count as communication.
    """
    talking = [kernel for kernel in kernels if kernel.category == "communication"]
    computing = [kernel for kernel in kernels if kernel.category != "communication"]
    if not kernels:
        return {"communication_ms": 0.0, "exposed_ms": 0.0, "computing_ms": 0.0, "idle_ms": 0.0}
    every, computed = busy_time(kernels), busy_time(computing)
    window = max(kernel.start + kernel.duration for kernel in kernels) - kernels[0].start
    times = {
        "communication_ms": busy_time(talking),
        "exposed_ms": every - computed,
        "computing_ms": computed,
        "idle_ms": window - every,
    }
    return {name: microseconds * 1e-3 / steps for name, microseconds in times.items()}
