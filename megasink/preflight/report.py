"""The findings for people (a table) and for programs (JSON)."""

import dataclasses
import statistics
import time

from megasink.preflight.config import PreflightConfig
from megasink.preflight.judge import pair_speeds
from megasink.preflight.summary import Node

_COLUMNS = (
    ("within bandwidth", "within", "GB/s"),
    ("within latency", "", "us"),
    ("pair bandwidth", "pairs", "GB/s"),
    ("pair latency", "", "us"),
    ("matrix product", "compute", "TFLOP/s"),
    ("SM clock", "clock", "MHz"),
    ("write speed", "write", "MiB/s"),
    ("read speed", "read", "MiB/s"),
)


def table(nodes: list[Node], world: dict[str, float] | None, bad: dict[str, list[str]]) -> str:
    """One line a node, then what all share."""
    width = max(12, *(len(node.name) + 2 for node in nodes))
    heads = [f"{'':<{width}}{'':>10}", f"{'node':<{width}}{'ranks':>10}"]
    for _, above, below in _COLUMNS:
        heads = [heads[0] + f"{above:>10}", heads[1] + f"{below:>10}"]
    lines = [heads[0] + f"{'offset':>10}{'free':>10}", heads[1] + f"{'ms':>10}{'GiB':>10}"]
    for node in nodes:
        ranks = f"{node.ranks[0]}-{node.ranks[-1]}" if len(node.ranks) > 1 else str(node.ranks[0])
        cells = "".join(_cell(_value(node, name)) for name, _, _ in _COLUMNS)
        free = node.free_gib.get("run folder")
        mark = "  BAD" if node.name in bad else ""
        lines.append(f"{node.name:<{width}}{ranks:>10}{cells}{1e3 * node.clock_offset_s:>10.1f}{_cell(free)}{mark}")
    speeds = pair_speeds(nodes)
    if speeds:
        (one, other), slowest = min(speeds.items(), key=lambda item: item[1])
        median = statistics.median(speeds.values())
        lines.append(f"{len(speeds)} pairs: median {median:.4g} GB/s, slowest {one} with {other} {slowest:.4g}")
    if world is not None:
        lines.append(f"all ranks together: {world['gb_s']:.4g} GB/s, {world['us']:.4g} us")
    lines.append(", ".join(f"{name} {value}" for name, value in nodes[0].same.items()))
    return "\n".join(lines)


def verdicts(bad: dict[str, list[str]]) -> list[str]:
    """One line for each bad node or pair."""
    return [f"megasink: BAD {name}: {'; '.join(reasons)}" for name, reasons in bad.items()]


def as_json(
    nodes: list[Node], world: dict[str, float] | None, bad: dict[str, list[str]], config: PreflightConfig
) -> dict:
    """Everything that was found."""
    return {
        "schema": "megasink.preflight/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": dataclasses.asdict(config),
        "nodes": [dataclasses.asdict(node) for node in nodes],
        "all_ranks": world,
        "bad": bad,
    }


def _value(node: Node, name: str) -> float | None:
    """Of a rank measure the worst rank's."""
    return min(node.rank_measures[name].values()) if name in node.rank_measures else node.measures.get(name)


def _cell(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.4g}"
