"""A run's plan: layout, parameters, memory, messages, time, checkpoints, for so many GPUs of a kind."""

from dataclasses import dataclass

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.model.flops import flops_per_token, num_parameters
from megasink.plan.checkpoint_size import checkpoint_bytes, consolidated_bytes, kept_checkpoints
from megasink.plan.communication import Message, step_messages
from megasink.plan.gpus import GPUS, RESERVED, Gpu
from megasink.plan.holdings import StageHoldings, stage_holdings, tensor_holdings
from megasink.plan.memory import Memory, stage_memory
from megasink.plan.parameters import StageParameters, stage_parameters
from megasink.plan.shape import micro_batches_of
from megasink.plan.timing import StepTime, bubble_fraction, stage_times


@dataclass(frozen=True)
class Machine:
    nodes: int
    gpus_per_node: int
    gpu: Gpu

    @staticmethod
    def of(nodes: int, gpus_per_node: int, gpu: str) -> "Machine":
        return Machine(nodes, gpus_per_node, GPUS[gpu])

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Plan:
    """Memory in bytes of a rank, times in seconds. Lists have one entry per pipeline stage."""

    config: RunConfig
    machine: Machine
    replicas: int
    """Data x context parallel ranks."""
    micro_batches: int
    """Of a step, on each replica."""
    parameters: list[StageParameters]
    memory: list[Memory]
    times: list[StepTime]
    messages: list[list[Message]]

    @property
    def fullest(self) -> int:
        """The stage whose ranks need most memory."""
        return max(range(len(self.memory)), key=lambda stage: self.memory[stage].total)

    @property
    def slowest(self) -> int:
        """The stage that takes longest; the others wait for it."""
        return max(range(len(self.times)), key=lambda stage: self.times[stage].total)

    @property
    def peak(self) -> int:
        return self.memory[self.fullest].total

    @property
    def room(self) -> float:
        """Bytes of a GPU that a run may fill."""
        return self.machine.gpu.memory - RESERVED

    @property
    def fits(self) -> bool:
        return self.peak <= self.room

    @property
    def step_time(self) -> float:
        return self.times[self.slowest].total

    @property
    def tokens_per_step(self) -> int:
        return self.config.training.global_batch_size * self.config.model.seq_length

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.tokens_per_step / self.step_time

    @property
    def mfu(self) -> float:
        """As the training command logs it (megasink.train.flops)."""
        per_gpu = self.tokens_per_second / self.machine.world_size
        return per_gpu * flops_per_token(self.config.model) / self.machine.gpu.peak_flops

    @property
    def bubble(self) -> float:
        """Share of a step in which a pipeline stage waits, 0 to 1."""
        return bubble_fraction(len(self.parameters), self.micro_batches)

    def stage_holdings(self) -> list[StageHoldings]:
        return stage_holdings(self.config, self.replicas)

    def days(self, tokens: float) -> float:
        return tokens / self.tokens_per_second / 86400

    def as_dict(self, target_tokens: float) -> dict:
        """For --json: plain numbers."""
        config, days = self.config, self.days(target_tokens)
        return {
            "gpus": self.machine.world_size,
            "gpu": self.machine.gpu.name,
            "parameters": num_parameters(config.model),
            "flops_per_token": flops_per_token(config.model),
            "micro_batches": self.micro_batches,
            "data_parallel": self.replicas // config.parallel.context_parallel_size,
            "fits": self.fits,
            "memory_room": self.room,
            "peak_memory": self.peak,
            "bubble": self.bubble,
            "step_time_s": self.step_time,
            "mfu": self.mfu,
            "tokens_per_second": self.tokens_per_second,
            "target_tokens": target_tokens,
            "days": days,
            "gpu_hours": 24 * days * self.machine.world_size,
            "checkpoint_bytes": checkpoint_bytes(config),
            "consolidated_bytes": consolidated_bytes(config),
            "kept_checkpoints": kept_checkpoints(config.checkpoint, config.training.train_iters),
            "tensor_ranks": [vars(held) for held in tensor_holdings(config)],
            "stages": [
                {
                    **vars(held),
                    "parameters": parameters.total,
                    "memory": vars(memory) | {"total": memory.total},
                    "time": vars(time) | {"total": time.total},
                    "messages": [vars(message) | {"wire_bytes": message.wire_bytes} for message in messages],
                }
                for held, parameters, memory, time, messages in zip(
                    self.stage_holdings(), self.parameters, self.memory, self.times, self.messages, strict=True
                )
            ],
        }


def make_plan(config: RunConfig, machine: Machine) -> Plan:
    """`config.model.vocab_size` is known. Raises UserError where the configuration does not go with so many ranks."""
    check_run(config, machine.world_size)
    parallel = config.parallel
    replicas = machine.world_size // (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)
    stages = range(parallel.pipeline_model_parallel_size)
    return Plan(
        config=config,
        machine=machine,
        replicas=replicas,
        micro_batches=micro_batches_of(config, replicas),
        parameters=stage_parameters(config.model, parallel),
        memory=stage_memory(config, replicas, config.training.compile),
        times=stage_times(config, replicas, machine.gpu, machine.gpus_per_node),
        messages=[step_messages(config, replicas, stage) for stage in stages],
    )
