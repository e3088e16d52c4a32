"""Layouts of a run on a machine, ranked: those that fit, the fastest first; or the nearest to one that does not."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from megasink.config import ParallelConfig, RunConfig
from megasink.errors import UserError
from megasink.plan.plan import Machine, Plan, make_plan

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
RECOMPUTATIONS = ("none", "selective", "full")


def fitting_plans(config: RunConfig, machine: Machine) -> list[Plan]:
    """Fastest first. Context parallelism, the model and the global batch stay as they are."""
    plans = [plan for plan in _plans(config, machine) if plan.fits]
    return sorted(plans, key=lambda plan: plan.step_time)


def nearest(config: RunConfig, fitting: list[Plan]) -> Plan | None:
    """Of plans that fit, the one with the fewest changes; among those the fastest."""
    return min(
        fitting, key=lambda plan: (len(changed_flags(config, plan.config)), _distance(config, plan)), default=None
    )


def changed_flags(before: RunConfig, after: RunConfig) -> list[str]:
    """What to add to the command line, flag by flag."""
    flags = []
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "zero_stage", "recompute"):
        if getattr(before.parallel, name) != (value := getattr(after.parallel, name)):
            flags.append(f"--{name.replace('_', '-')} {value}")
    if before.parallel.sequence_parallel != after.parallel.sequence_parallel:
        flags.append("--sequence-parallel" if after.parallel.sequence_parallel else "--no-sequence-parallel")
    if before.training.micro_batch_size != after.training.micro_batch_size:
        flags.append(f"--micro-batch-size {after.training.micro_batch_size}")
    return flags


def _distance(config: RunConfig, plan: Plan) -> tuple[float, float]:
    def octaves(name: str) -> float:
        return abs(math.log2(getattr(plan.config.parallel, name) / getattr(config.parallel, name)))

    return octaves("tensor_model_parallel_size") + octaves("pipeline_model_parallel_size"), plan.step_time


def _plans(config: RunConfig, machine: Machine) -> Iterator[Plan]:
    """Tensor parallelism inside a node; pipelines with ZeRO 1, no pipeline with ZeRO 1 to 3; what checks allow."""
    within_node = _powers_of_two(machine.gpus_per_node)
    over_nodes = _powers_of_two(min(config.model.num_layers, machine.world_size))
    micro_batches = {*MICRO_BATCHES, config.training.micro_batch_size}
    for tensor, pipeline in itertools.product(within_node, over_nodes):
        if tensor * pipeline > machine.world_size:
            continue
        zeros = (1, 2, 3) if pipeline == 1 else (1,)
        sequences = (False,) if tensor == 1 else (False, True)
        for zero, sequence, recompute in itertools.product(zeros, sequences, RECOMPUTATIONS):
            parallel: ParallelConfig = replace(
                config.parallel,
                tensor_model_parallel_size=tensor,
                pipeline_model_parallel_size=pipeline,
                pipeline_split=config.parallel.pipeline_split
                if pipeline == config.parallel.pipeline_model_parallel_size
                else None,
                sequence_parallel=sequence,
                zero_stage=zero,
                recompute=recompute,
            )
            for micro_batch in sorted(micro_batches):
                training = replace(config.training, micro_batch_size=micro_batch)
                try:
                    yield make_plan(replace(config, parallel=parallel, training=training), machine)
                except UserError:
                    continue


def _powers_of_two(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
