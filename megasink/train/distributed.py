"""Start and end the process group, quietly."""

import contextlib
import datetime
import logging
import os
import warnings
from collections.abc import Iterator

import deepspeed
import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(minutes=10)


def start_distributed() -> torch.device:
    """Join the job named by the environment (RANK, WORLD_SIZE, ...) with NCCL or gloo; returns this rank's device."""
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="deepspeed")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # its first use on a CPU would compile a C++ extension for minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    with quiet_stdout():
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False, timeout=TIMEOUT)
    return device


def end_distributed() -> None:
    """Leave the job; the other ranks are not waited for."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """DeepSpeed prints topologies and seeds with print(); a user should see our lines instead."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
