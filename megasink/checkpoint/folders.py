"""The checkpoints of a run folder."""

from pathlib import Path


def step_folders(checkpoints: Path) -> list[Path]:
    """`step_00000100` and the like, fewest steps first. Copies that somebody put beside them under other names are not
    looked at."""
    return [path for path in sorted(checkpoints.glob("step_*")) if path.name.removeprefix("step_").isdigit()]
