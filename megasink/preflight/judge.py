"""Which nodes are bad, and why: those that stand out from the median, and those below what was asked for."""

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from megasink.preflight.config import PreflightConfig
from megasink.preflight.summary import Node


@dataclass(frozen=True)
class Measure:
    """A number that nodes (or ranks) are compared by."""

    name: str
    unit: str
    factor: str
    """The field of PreflightConfig that says how far it may be from the median."""
    more_is_better: bool = True

    def reference(self, values: Iterable[float]) -> float:
        """The median; of two in the middle the better, so that of two nodes the worse is named."""
        return (statistics.median_high if self.more_is_better else statistics.median_low)(values)

    def complaint(self, value: float, reference: float, config: PreflightConfig) -> str | None:
        """None if the value is near the reference or better."""
        limit = getattr(config, self.factor)
        worse, better = (value, reference) if self.more_is_better else (reference, value)
        ratio = better / worse if worse > 0 else float("inf")
        if ratio <= limit:
            return None
        apart = f"{ratio:.1f} times {'less' if self.more_is_better else 'more'}, limit {limit:g}"
        return f"{self.name} {value:.4g} {self.unit}, median {reference:.4g} ({apart})"


PAIR = Measure("pair bandwidth", "GB/s", "factor")
MEASURES = (
    Measure("within bandwidth", "GB/s", "factor"),
    Measure("within latency", "us", "latency_factor", more_is_better=False),
    PAIR,
    Measure("pair latency", "us", "latency_factor", more_is_better=False),
    Measure("write speed", "MiB/s", "disk_factor"),
    Measure("read speed", "MiB/s", "disk_factor"),
    Measure("memory", "GiB", "compute_factor"),
)
RANK_MEASURES = (Measure("matrix product", "TFLOP/s", "compute_factor"), Measure("SM clock", "MHz", "compute_factor"))


def judge(nodes: list[Node], config: PreflightConfig) -> dict[str, list[str]]:
    """Reasons by the name of a bad node, or of a pair of nodes (`a with b`) that are well apart from each other."""
    bad: dict[str, list[str]] = {node.name: list(node.faults) for node in nodes}
    for measure in MEASURES:
        values = {node.name: node.measures[measure.name] for node in nodes if measure.name in node.measures}
        reference = measure.reference(values.values()) if values else 0.0
        for name, value in values.items():
            bad[name] += filter(None, [measure.complaint(value, reference, config)])
    for measure in RANK_MEASURES:
        every = [value for node in nodes for value in node.rank_measures.get(measure.name, {}).values()]
        for node in nodes:
            for rank, value in node.rank_measures.get(measure.name, {}).items():
                complaint = measure.complaint(value, measure.reference(every), config)
                bad[node.name] += [] if complaint is None else [f"rank {rank}: {complaint}"]
    _compare_equal(nodes, bad)
    _compare_clocks(nodes, config, bad)
    _apply_floors(nodes, config, bad)
    _judge_pairs(nodes, config, bad)
    return {name: reasons for name, reasons in bad.items() if reasons}


def _compare_equal(nodes: list[Node], bad: dict[str, list[str]]) -> None:
    for key in dict.fromkeys(key for node in nodes for key in node.same):
        values = [node.same.get(key, "none") for node in nodes]
        usual = Counter(values).most_common(1)[0][0]  # of equally many, the first node's
        for node, value in zip(nodes, values, strict=True):
            if value != usual:
                others = "the others have" if len(nodes) > 2 else f"{nodes[0].name} has"
                bad[node.name].append(f"{key} {value}, {others} {usual}")


def _compare_clocks(nodes: list[Node], config: PreflightConfig, bad: dict[str, list[str]]) -> None:
    median = statistics.median_low(node.clock_offset_s for node in nodes)
    if len(nodes) == 2:
        median = nodes[0].clock_offset_s
    for node in nodes:
        off = node.clock_offset_s - median
        if abs(off) > config.max_clock_offset_s:
            bad[node.name].append(f"clock {off:+.3f} s from the others (limit {config.max_clock_offset_s:g})")


def _apply_floors(nodes: list[Node], config: PreflightConfig, bad: dict[str, list[str]]) -> None:
    floors = {"within bandwidth": config.min_within_gb_s, "pair bandwidth": config.min_pair_gb_s}
    for node in nodes:
        for name, floor in floors.items():
            if node.measures.get(name, floor) < floor:
                bad[node.name].append(f"{name} {node.measures[name]:.4g} GB/s, asked for {floor:g}")
        for place in ("run folder", "temporary folder"):
            if node.free_gib.get(place, config.min_free_gib) < config.min_free_gib:
                free = node.free_gib[place]
                bad[node.name].append(f"{free:.2f} GiB free in the {place}, asked for {config.min_free_gib:g}")


def _judge_pairs(nodes: list[Node], config: PreflightConfig, bad: dict[str, list[str]]) -> None:
    """A slow link between two nodes that are fast with the others."""
    suspects = {name for name, reasons in bad.items() if any(reason.startswith(PAIR.name) for reason in reasons)}
    speeds = pair_speeds(nodes)
    reference = PAIR.reference(speeds.values()) if speeds else 0.0
    for (one, other), speed in speeds.items():
        complaint = PAIR.complaint(speed, reference, config)
        if complaint is not None and not {one, other} & suspects:
            bad[f"{one} with {other}"] = [complaint]


def pair_speeds(nodes: list[Node]) -> dict[tuple[str, str], float]:
    """GB/s of each measured pair, once."""
    order = {node.name: at for at, node in enumerate(nodes)}
    return {
        (node.name, other): pair["gb_s"]
        for node in nodes
        for other, pair in node.pairs.items()
        if order[node.name] < order[other]
    }
