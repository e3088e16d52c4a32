"""What a node is made of: versions, processor, free space."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from pathlib import Path

import torch

import megasink

PACKAGES = ("deepspeed", "transformers", "numpy")


def versions() -> dict[str, str]:
    """What must be equal on all nodes."""
    found = {"python": platform.python_version(), "megasink": megasink.__version__, "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def machine() -> dict[str, str]:
    """Also to be equal on all nodes of a job."""
    return {"kernel": platform.release(), "CPU cores": str(os.cpu_count())}


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def free_gib(folder: Path) -> dict[str, float]:
    """GiB free for the run folder, temporary files and shared memory (where NCCL and data loaders talk)."""
    places = {"run folder": folder, "temporary folder": Path(tempfile.gettempdir()), "/dev/shm": Path("/dev/shm")}
    return {name: shutil.disk_usage(place).free / 2**30 for name, place in places.items() if place.exists()}
