"""All-reduce between some ranks: bandwidth of large messages, latency of small ones."""

import statistics
import time

import torch
import torch.distributed as dist

BATCHES = 5
"""Calls are timed in so many batches, of which the median counts."""


def all_reduce_speed(
    group: dist.ProcessGroup | None, ranks: int, device: torch.device, large_mib: float, small_kib: float, calls: int
) -> dict[str, float]:
    """`gb_s`: bus bandwidth, 10^9 bytes/s = bytes / time * 2 (ranks - 1) / ranks (as nccl-tests counts it), which a
    link's own bandwidth bounds whatever the number of ranks; `us`: microseconds of a small one.

    Every rank of `group` calls this.
    """
    large = torch.zeros(max(1, round(large_mib * 2**18)), device=device)
    small = torch.zeros(max(1, round(small_kib * 2**8)), device=device)
    seconds = _seconds_a_call(large, group, calls)
    bus_bytes = large.numel() * large.element_size() * 2 * (ranks - 1) / ranks
    return {"gb_s": bus_bytes / seconds / 1e9, "us": _seconds_a_call(small, group, calls) * 1e6}


def _seconds_a_call(buffer: torch.Tensor, group: dist.ProcessGroup | None, calls: int) -> float:
    for _ in range(2):  # connects
        dist.all_reduce(buffer, group=group)
    times = []
    for _ in range(BATCHES):
        synchronize(buffer.device)
        began = time.perf_counter()
        for _ in range(max(1, calls // BATCHES)):
            dist.all_reduce(buffer, group=group)
        synchronize(buffer.device)
        times.append((time.perf_counter() - began) / max(1, calls // BATCHES))
    return statistics.median(times)


def meet(device: torch.device) -> None:
    """All ranks are here; dist.barrier() would guess the device and warn of it."""
    dist.all_reduce(torch.zeros(1, device=device))
    synchronize(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
