"""Run a function on real gloo ranks and bring each rank's result back."""

import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.helpers.forking import FORK_SERVER


def run_ranks(world_size: int, function: Callable, *args: Any) -> list[Any]:
    """function(*args) on every rank of a fresh gloo world; returns what each rank returned, in rank order.

    `function` must be importable (a module-level function) and its results loadable by torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _run_one,
            (world_size, folder, function, args),
            nprocs=world_size,
            start_method=FORK_SERVER.get_start_method(),
            join=True,
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run_one(rank: int, world_size: int, folder: str, function: Callable, args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    _share_groups()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        torch.save(function(*args), f"{folder}/{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def _share_groups() -> None:
    """One process group for each set of ranks, however often a test and DeepSpeed ask for it: every gloo group keeps a
    thread that wakes a hundred times a second for ever, and hundreds of them bring a small machine to a halt."""
    make, made = dist.new_group, {}

    def new_group(ranks=None, *args, **kwargs):
        key = None if ranks is None or len(ranks) == dist.get_world_size() else tuple(ranks)
        if key not in made:
            made[key] = make(ranks, *args, **kwargs)
        return made[key]

    dist.new_group = new_group
