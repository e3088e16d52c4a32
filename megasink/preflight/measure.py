"""All measurements, in the order in which every rank makes them."""

from pathlib import Path

import torch
import torch.distributed as dist

from megasink.preflight.bandwidth import all_reduce_speed, meet
from megasink.preflight.clock import clock_offset
from megasink.preflight.config import PreflightConfig
from megasink.preflight.disk import disk_seconds
from megasink.preflight.gpu import compute_speed
from megasink.preflight.host import free_gib, machine, memory_gib, versions
from megasink.preflight.nodes import Nodes
from megasink.preflight.pairing import pair_rounds
from megasink.preflight.transport import transports
from megasink.train.watchdog import Watchdog


def measure_rank(
    config: PreflightConfig, nodes: Nodes, device: torch.device, folder: Path, log: Path, watchdog: Watchdog
) -> dict:
    """What this rank found, for summary.node_of. Every rank calls this.

    Args:
        folder: in the run folder; exists.
        log: what NCCL says in this process.
    """
    mine = nodes.ranks[nodes.mine]
    rounds = pair_rounds(len(nodes.names), config.pair_rounds)

    def speed(group: dist.ProcessGroup | None, ranks: int) -> dict[str, float]:
        return all_reduce_speed(group, ranks, device, config.large_mib, config.small_kib, config.iterations)

    watchdog.beat(0, "all ranks together")
    everyone = speed(None, dist.get_world_size()) if dist.get_world_size() > 1 else None
    watchdog.beat(1, "clocks")
    offset = clock_offset(nodes)
    watchdog.beat(2, "matrix products")
    meet(device)  # all devices of a node draw power at once
    compute = compute_speed(device)
    watchdog.beat(3, f"the file system of {folder}")
    meet(device)
    # the same place on the next node
    partner_node = (nodes.mine + 1) % len(nodes.names)
    partner = nodes.ranks[partner_node][mine.index(dist.get_rank()) % len(nodes.ranks[partner_node])]
    size = int(config.file_mib * 2**20) // len(mine)
    disk = disk_seconds(folder, size, partner, nodes.names[partner_node], device)
    watchdog.beat(4, f"within {nodes.names[nodes.mine]}")
    within = _in_group(list(mine), speed) if len(mine) > 1 else None
    pairs = {}
    for at, pairing in enumerate(rounds):
        watchdog.beat(5 + at, f"pairs, round {at + 1} of {len(rounds)}")
        meet(device)
        for pair in pairing:
            if nodes.mine in pair:
                other = pair[0] + pair[1] - nodes.mine
                one, two = nodes.names[pair[0]], nodes.names[pair[1]]
                watchdog.beat(5 + at, f"pairs, round {at + 1} of {len(rounds)}: {one} with {two}")
                pairs[nodes.names[other]] = _in_group([*nodes.ranks[pair[0]], *nodes.ranks[pair[1]]], speed)
    watchdog.beat(5 + len(rounds), "gathering what was found")
    return {
        "rank": dist.get_rank(),
        "all": everyone,
        "clock_offset_s": offset,
        "compute": compute,
        "disk": disk,
        "within": within,
        "pairs": pairs,
        "memory_gib": memory_gib(),
        "free_gib": free_gib(folder),
        "same": machine() | versions(),
        "transports": transports(log.read_text(errors="replace")) if log.exists() else {},
    }


def _in_group(ranks: list[int], speed) -> dict[str, float]:
    """Measure in a group that only its members make, and that is gone after: there are many. torch names such a group
    after its ranks, so none can be made twice: the group of all is there already.
    """
    if len(ranks) == dist.get_world_size():
        return speed(None, len(ranks))
    group = dist.new_group(ranks, use_local_synchronization=True)
    found = speed(group, len(ranks))
    dist.destroy_process_group(group)
    return found
