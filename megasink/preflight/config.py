"""What preflight measures, and from where on a node is bad."""

from dataclasses import dataclass

from megasink.config.ranges import check_ranges
from megasink.errors import UserError


@dataclass
class PreflightConfig:
    """Flags of preflight."""

    save: str = "runs/preflight"
    """Run folder that the job will use: its file system is measured; the report goes to preflight/ in it."""
    large_mib: float = 256.0
    """All-reduce that measures bandwidth, MiB a rank."""
    small_kib: float = 8.0
    """All-reduce that measures latency, KiB a rank."""
    iterations: int = 20
    """All-reduces of each size."""
    pair_rounds: int = 16
    """In each round every node is measured with one other; nodes - 1 rounds have all pairs, fewer are spread evenly."""
    file_mib: float = 1024.0
    """Data that each node writes and reads, all at once, MiB, split over its ranks."""
    factor: float = 1.5
    """A node is bad whose bandwidth is so many times less than the median."""
    latency_factor: float = 2.0
    """A node is bad whose small messages take so many times as long as the median's."""
    disk_factor: float = 3.0
    """The factor for the speed of the file system, which others use too."""
    compute_factor: float = 1.15
    """The factor for a rank's matrix product and clock, and a node's memory."""
    max_clock_offset_s: float = 0.5
    """Largest difference of a node's clock from the median."""
    min_free_gib: float = 1.0
    """Least free space of the run folder and of the temporary folder."""
    min_within_gb_s: float = 0.0
    """Least bus bandwidth within a node, 10^9 bytes/s; also counts where there is no other node to compare with."""
    min_pair_gb_s: float = 0.0
    """Least bus bandwidth between two nodes, 10^9 bytes/s."""
    timeout_in_mins: float = 3.0
    """A measurement that takes longer ends the job, and one line says which ranks stand where."""


def check_config(config: PreflightConfig) -> None:
    """Raises UserError for values that cannot be meant."""
    check_ranges(config)
    positive = ("large_mib", "small_kib", "iterations", "file_mib", "timeout_in_mins", "max_clock_offset_s")
    for name in positive:
        if getattr(config, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be more than 0")
    if config.pair_rounds < 2:
        raise UserError(f"--pair-rounds {config.pair_rounds}: give 2 or more, so that each node meets another")
    for name in ("factor", "latency_factor", "disk_factor", "compute_factor"):
        if getattr(config, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be more than 1")
