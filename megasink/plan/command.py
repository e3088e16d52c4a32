"""tools/plan.py: what it takes and what it prints."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from megasink.config import RunConfig
from megasink.data.atomic import write_atomic
from megasink.errors import UserError
from megasink.plan.plan import Machine, Plan, make_plan
from megasink.plan.search import changed_flags, fitting_plans, nearest
from megasink.plan.table import GIB, describe, ranking


@dataclass
class PlanCommand(RunConfig):
    """A run (all flags of the training command), and the machine it is planned for."""

    nodes: int = 1
    """Nodes."""
    gpus_per_node: int = 8
    """GPUs of each node; they are joined by NVLink."""
    gpu: Literal["h100", "h200", "a100", "a100-40gb"] = "h100"
    """Kind of GPU (SXM)."""
    target_tokens: float | None = None
    """Tokens to train on, for days and GPU-hours; default: those of --train-iters."""
    search: bool = False
    """Rank other layouts of the same run on the same machine."""
    json: str | None = None
    """Also write the plan to this file, as JSON."""

    def run_config(self) -> RunConfig:
        run = RunConfig(**{section.name: getattr(self, section.name) for section in fields(RunConfig)})
        run.checkpoint.save = run.checkpoint.save or "runs/planned"  # nothing is written there
        return run


def print_plan(command: PlanCommand, vocabulary: str) -> None:
    """`command.model.vocab_size` is known, `vocabulary` says from where.

    Raises:
        UserError: the configuration contradicts itself, or does not fit; then the nearest layout that does is named.
    """
    config, machine = command.run_config(), Machine.of(command.nodes, command.gpus_per_node, command.gpu)
    if command.nodes < 1 or command.gpus_per_node < 1:
        raise UserError("--nodes and --gpus-per-node: must be at least 1")
    if command.target_tokens is not None and not 0 < command.target_tokens < math.inf:
        raise UserError(f"--target-tokens {command.target_tokens:g}: must be a number of more than 0")
    if command.json == "":
        raise UserError("--json is empty; name a file")
    if config.training.fp8 != "off" and not machine.gpu.fp8:
        raise UserError(f"--fp8 {config.training.fp8}: an {command.gpu} cannot multiply fp8; give --fp8 off")
    plan = make_plan(config, machine)
    target = command.target_tokens or float(config.training.train_iters * plan.tokens_per_step)
    print("\n".join(describe(plan, target)))
    print(f"  vocabulary: {config.model.vocab_size} ({vocabulary})")
    fitting = fitting_plans(config, machine) if command.search or not plan.fits else []
    if command.search:
        print("\n" + "\n".join(ranking(fitting, config)))
    if command.json is not None:
        _write(Path(command.json), plan, target, fitting if command.search else [])
    if not plan.fits:
        raise UserError(_refusal(plan, nearest(config, fitting)))


def _refusal(plan: Plan, instead: Plan | None) -> str:
    needs = f"needs {plan.peak / GIB:.1f} GiB on a rank of stage {plan.fullest}, of {plan.room / GIB:.1f} it may have"
    if instead is None:
        return f"{needs}; no layout of {plan.machine.world_size} GPUs fits: take more nodes, or a smaller model"
    return (
        f"{needs}; the nearest layout that fits ({instead.peak / GIB:.1f} GiB, {instead.step_time:.2f} s a step): "
        f"{' '.join(changed_flags(plan.config, instead.config))}; --search ranks all"
    )


def _write(path: Path, plan: Plan, target: float, fitting: list[Plan]) -> None:
    content = plan.as_dict(target)
    if fitting:
        content["search"] = [
            {
                "flags": changed_flags(plan.config, other.config),
                "step_time_s": other.step_time,
                "mfu": other.mfu,
                "peak_memory": other.peak,
            }
            for other in fitting
        ]
    try:
        write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"--json {path}: cannot write there ({error.strerror})") from None
