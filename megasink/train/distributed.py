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

from megasink.errors import UserError


def start_distributed(timeout_in_mins: float = 30.0) -> torch.device:
    """Join the job named by the environment (RANK, WORLD_SIZE, ...) with NCCL or gloo; returns this rank's device.

    A collective operation that takes longer than the time-out fails.

    Raises:
        UserError: on rank 0, another program holds MASTER_PORT.
    """
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="deepspeed")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # it is the device set here
    # asks on every rank for what test_compiled.py shows: recomputed blocks give the same gradients compiled
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    # its first use on a CPU would compile a C++ extension for minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    # torch keeps a record of the last collectives, for the watchdog and for NCCL's own time-out
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    timeout = datetime.timedelta(minutes=timeout_in_mins)
    # that of init is the first group's alone; all later ones, DeepSpeed's too, take these
    dist.distributed_c10d.default_pg_timeout = dist.distributed_c10d.default_pg_nccl_timeout = timeout
    try:
        with quiet_stdout():
            deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT {os.environ['MASTER_PORT']} is taken, by another job of this machine or by ranks left of "
            "one; give a free one: MASTER_PORT=29600 before the command, --master_port with deepspeed"
        ) from None
    return device


def end_distributed() -> None:
    """Leave the job; the other ranks are not waited for."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_rank(error: Exception) -> str | None:
    """Why, if this error says that another rank is gone or silent; otherwise None."""
    text = str(error).strip()
    torn = isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "Connection " in text or "Timed out waiting" in text)
    )
    return text.splitlines()[0].split("] ", 1)[-1].split(". ")[0] if torn and text else None


def timed_out(error: Exception) -> bool:
    """Whether this error says that a collective operation took longer than the time-out."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("timed out", "timeout"))


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """DeepSpeed prints topologies and seeds with print(); a user should see our lines instead."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
