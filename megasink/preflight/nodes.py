"""Which ranks share a node."""

import os
import socket
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Nodes:
    """Names in order of each node's first rank, and the ranks of each."""

    names: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    mine: int

    @property
    def leads(self) -> bool:
        """Is this rank the first of its node?"""
        return self.ranks[self.mine][0] == dist.get_rank()

    @property
    def leaders(self) -> list[int]:
        return [ranks[0] for ranks in self.ranks]


def own_name() -> str:
    """Slurm's name of this node, or the host's. MEGASINK_RANKS_PER_NODE=2 pretends that two ranks are a node."""
    pretended = os.environ.get("MEGASINK_RANKS_PER_NODE")
    if pretended:
        return f"node{int(os.environ['RANK']) // int(pretended)}"
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]


def find_nodes() -> Nodes:
    """Every rank calls this."""
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, own_name())
    order = tuple(dict.fromkeys(names))
    ranks = tuple(tuple(rank for rank, name in enumerate(names) if name == node) for node in order)
    return Nodes(order, ranks, order.index(names[dist.get_rank()]))
