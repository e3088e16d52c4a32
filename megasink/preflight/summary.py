"""The ranks' findings, put together by node."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Node:
    """What was found on one node. Bandwidths in 10^9 bytes/s, latencies in microseconds, file speeds in MiB/s."""

    name: str
    ranks: list[int]
    measures: dict[str, float] = field(default_factory=dict)
    """Of the node, by the names of judge.MEASURES; what was not measured is absent."""
    rank_measures: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of each of its ranks, by the names of judge.RANK_MEASURES."""
    pairs: dict[str, dict[str, float]] = field(default_factory=dict)
    """`gb_s` and `us` with other nodes, by their names."""
    same: dict[str, str] = field(default_factory=dict)
    """What should be equal on all nodes."""
    clock_offset_s: float = 0.0
    free_gib: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """What stands by itself, whatever the other nodes show."""


def node_of(name: str, ranks: list[dict], file_mib: float) -> Node:
    """Put together the findings of a node's ranks (megasink.preflight.measure.measure_rank), its first rank first.

    Args:
        file_mib: what the ranks wrote together.
    """
    first = ranks[0]
    node = Node(name, [rank["rank"] for rank in ranks], pairs=first["pairs"], free_gib=first["free_gib"])
    node.clock_offset_s = first["clock_offset_s"]
    measures = {"memory": first["memory_gib"]}
    if first["within"] is not None:
        measures |= {"within bandwidth": first["within"]["gb_s"], "within latency": first["within"]["us"]}
    if node.pairs:
        # the better half: one bad partner must not make this node look bad
        measures["pair bandwidth"] = statistics.median_high(pair["gb_s"] for pair in node.pairs.values())
        measures["pair latency"] = statistics.median_low(pair["us"] for pair in node.pairs.values())
    for kind in ("write", "read"):
        if all(f"{kind}_s" in rank["disk"] for rank in ranks):
            measures[f"{kind} speed"] = file_mib / max(rank["disk"][f"{kind}_s"] for rank in ranks)
    node.measures = measures
    node.rank_measures = {"matrix product": {rank["rank"]: rank["compute"]["tflops"] for rank in ranks}}
    clocks = {rank["rank"]: rank["compute"]["gpu"].get("sm_mhz") for rank in ranks}
    if None not in clocks.values():
        node.rank_measures["SM clock"] = clocks
    _compare_ranks(node, ranks)
    for rank in ranks:
        for fault in (rank["disk"].get("fault"), rank["compute"]["gpu"].get("fault")):
            if fault is not None:
                node.faults.append(f"rank {rank['rank']}: {fault}")
    return node


def _compare_ranks(node: Node, ranks: list[dict]) -> None:
    """Fill node.same; ranks of one node that differ are a fault."""
    for rank in ranks:
        for name, value in (rank["same"] | rank["compute"]["gpu"].get("same", {})).items():
            known = node.same.setdefault(name, value)
            if known != value:
                node.faults.append(f"rank {rank['rank']}: {name} {value}, rank {node.ranks[0]} has {known}")
    for place in ("within", "between", "network devices"):
        kinds = {kind for rank in ranks for kind in rank["transports"].get(place, "").split(" + ") if kind}
        if kinds:
            node.same[f"NCCL {place}"] = " + ".join(sorted(kinds))
