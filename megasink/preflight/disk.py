"""Write and read speed of the run folder, from all nodes at once."""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from megasink.preflight.bandwidth import meet

CHUNK = 1 << 24


def disk_seconds(
    folder: Path, size: int, partner: int, partner_node: str, device: torch.device
) -> dict[str, float | str]:
    """`write_s` and `read_s` of a file of `size` bytes by this rank; `fault` instead where that failed.

    What is read is the file of rank `partner`, on another node if there is one: from the file system, not from memory.
    Every rank calls this.
    """
    own, found = folder / f".speed-{dist.get_rank()}", {}
    try:
        found["write_s"] = _write(own, size)
    except OSError as error:
        found["fault"] = f"cannot write {size >> 20} MiB in {folder} ({error.strerror})"
    meet(device)
    try:
        found["read_s"] = _read(folder / f".speed-{partner}")
    except FileNotFoundError:
        found.setdefault("fault", f"does not see what {partner_node} wrote in {folder}: no shared file system there")
    except OSError as error:
        found.setdefault("fault", f"cannot read in {folder} ({error.strerror})")
    meet(device)
    own.unlink(missing_ok=True)
    return found


def _write(path: Path, size: int) -> float:
    chunk = os.urandom(CHUNK)  # nothing that a file system could pack
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size, CHUNK):
            file.write(chunk[: size - at])
        os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return seconds


def _read(path: Path) -> float:
    buffer = bytearray(CHUNK)
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began
