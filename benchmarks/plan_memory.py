"""The planner against one GPU: peak memory and step time of a list of configurations, planned and measured.

    python benchmarks/plan_memory.py --out OUT                     # all of them, about 20 minutes on an H100
    python benchmarks/plan_memory.py --out OUT --only 1b-mb8,3b    # those whose names begin so
    python benchmarks/plan_memory.py --out OUT --measure off       # the planned half alone; needs no GPU

Each runs the training command in a process of its own. Writes OUT/plan.json, prints a table in Markdown. The first two
are those to calibrate on (constants of megasink/plan/timing.py); the others judge.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from throughput.megasink_case import FEATURES, train, write_tokens
from throughput.shapes import shape_named
from throughput.work import Work

from megasink.config import RunConfig
from megasink.config.cli import parse_cli
from megasink.data.atomic import write_atomic
from megasink.errors import UserError, run_cli
from megasink.plan.plan import Machine, Plan, make_plan


@dataclass(frozen=True)
class Configuration:
    name: str
    shape: str
    micro_batch: int
    accumulate: int = 1
    flags: tuple[str, ...] = ()


SELECTIVE, FULL = ("--recompute", "selective"), ("--recompute", "full")
V_SCALE = ("--v-scale", "on")
CONFIGURATIONS = [
    Configuration("1b-mb8", "1b", 8, 1, V_SCALE),
    Configuration("0.3b-mb8", "0.3b", 8),
    Configuration("1b-mb8-acc4", "1b", 8, 4, V_SCALE),
    Configuration("1b-mb1", "1b", 1),
    Configuration("1b-mb4", "1b", 4, 2),
    Configuration("1b-mb16-selective", "1b", 16, 1, SELECTIVE),
    Configuration("1b-mb16-full", "1b", 16, 1, FULL),
    Configuration("0.3b-mb16", "0.3b", 16),
    Configuration("0.3b-mb16-selective", "0.3b", 16, 2, SELECTIVE),
    Configuration("3b-mb1", "3b", 1),
    Configuration("3b-mb4-selective", "3b", 4, 1, SELECTIVE),
    Configuration("3b-mb8-full", "3b", 8, 2, FULL),
    Configuration("7b-cut-mb2", "7b-cut", 2),
    Configuration("tiny", "tiny", 2),
]


@dataclass
class PlanMemoryConfig:
    """What is measured, and where."""

    out: str = "plan-out"
    """Folder of plan.json."""
    only: str | None = None
    """Configurations, by name or how it begins, separated by commas; default: all but tiny."""
    steps: int = 8
    """Timed steps, after 4 of warm-up."""
    gpu: Literal["h100", "h200", "a100", "a100-40gb"] = "h100"
    """Kind of GPU to plan for (SXM)."""
    measure: Literal["on", "off"] = "on"
    """off: only plan."""


def main() -> None:
    own = parse_cli(PlanMemoryConfig, sys.argv[1:], "Compare the planner with measurements on one GPU.")
    out = Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    chosen = _chosen(own.only)
    print("| configuration | planned GiB | measured | difference | planned ms | measured | difference |", flush=True)
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for configuration in chosen:
        plan = _plan(configuration, own.gpu)
        row = {"name": configuration.name, "planned_gib": plan.peak / 2**30, "planned_ms": 1e3 * plan.step_time}
        if own.measure == "on":
            row |= _measured(configuration, own.steps, out)
        rows.append(row)
        print(_line(row), flush=True)
        write_atomic(out / "plan.json", (json.dumps(rows, indent=1) + "\n").encode())


def _chosen(only: str | None) -> list[Configuration]:
    if only is None:
        return [configuration for configuration in CONFIGURATIONS if configuration.shape != "tiny"]
    beginnings = tuple(only.split(","))
    chosen = [configuration for configuration in CONFIGURATIONS if configuration.name.startswith(beginnings)]
    if not chosen:
        names = ", ".join(configuration.name for configuration in CONFIGURATIONS)
        raise UserError(f"--only {only}: none begins so; there are {names}")
    return chosen


def _plan(configuration: Configuration, gpu: str) -> Plan:
    flags = [*shape_named(configuration.shape).flags(), *FEATURES["megasink-plain"], *configuration.flags]
    batch = configuration.micro_batch * configuration.accumulate
    flags += ["--micro-batch-size", str(configuration.micro_batch), "--global-batch-size", str(batch)]
    return make_plan(parse_cli(RunConfig, [*flags, "--save", "unused"]), Machine.of(1, 1, gpu))


def _measured(configuration: Configuration, steps: int, out: Path) -> dict:
    shape = shape_named(configuration.shape)
    work = Work(
        case="megasink-plain",
        shape=shape,
        micro_batch_size=configuration.micro_batch,
        accumulate=(configuration.accumulate,),
        steps=steps,
        warmup=4,
        compile=True,
        scratch=str(out),
        megasink_flags=configuration.flags,
    )
    with tempfile.TemporaryDirectory(dir=out) as folder:
        tokens = write_tokens(Path(folder) / "tokens", shape.vocab_size)
        found = train(work, configuration.accumulate, tokens, Path(folder) / "run")
    return {"measured_gib": found["peak_gib"], "measured_ms": 1e3 * found["step_s"]}


def _line(row: dict) -> str:
    cells = [row["name"]]
    for unit, digits in (("gib", 2), ("ms", 1)):
        planned, measured = row[f"planned_{unit}"], row.get(f"measured_{unit}")
        cells.append(f"{planned:.{digits}f}")
        if measured is None:  # a CPU has no peak of the allocator
            cells += ["not run", ""]
        else:
            cells += [f"{measured:.{digits}f}", f"{100 * (planned / measured - 1):+.1f} %"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_cli(main)
