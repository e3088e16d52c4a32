"""Time of one optimizer step: products at a fraction of the peak, passes over memory, messages, and the pipeline.

Constants are calibrated on the parts of one profile (docs/results/profile_1b_accumulate1.json: one H100, 1.2B,
micro-batch 8) or assumed where nothing was measured; docs/planning.md compares the outcome with other measurements and
published runs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from megasink.config import RunConfig
from megasink.plan.communication import Message, step_messages
from megasink.plan.gpus import Gpu
from megasink.plan.parameters import StageParameters, stage_parameters
from megasink.plan.shape import micro_batches_of
from megasink.plan.work import micro_batch_work

MATMUL = 0.735
"""Of the bf16 peak that matrix products reach (154.0 ms in the profile)."""
ATTENTION, HALF_RATE_TOKENS, NARROW_HEADS = 0.45, 950, 0.8
"""Of the peak, for causal attention over long sequences with heads of 128; tokens at which it reaches half of that; and
what heads of 64 reach of it. From floors of docs/results/h200: 0.307, 0.393, 0.440 at 2k, 8k and 32k tokens, and with
heads of 64 0.197 at 1k and 0.245 at 2k."""
ELEMENTWISE = 0.655
"""Of the memory bandwidth, for the fused kernels between products (33.0 ms)."""
OPTIMIZER = 0.77
"""Of the memory bandwidth, for AdamW in one pass and the gradients' sums (14.0 ms)."""
HOST = 5e-3
"""Seconds a step that the device waits for the host, however large its work (5.2 ms)."""
HOST_PASS = 1.3e-3
"""Seconds in which the host launches a block's forward or backward pass: the 1.2B model with micro-batch 1, which
waits for nothing else (63.6 ms)."""
HOST_COLLECTIVE = 0.2e-3
"""Seconds in which it launches a collective in a compiled block: the 1.2B on 2 GPUs, TP 2 with micro-batch 4, at its
fastest (0.62 s)."""
LINK = 0.75
"""Of NVLink's and the network's bandwidth that large messages reach. Assumed: not measured by us."""
LATENCY = 20e-6
"""Seconds of a message, however small. Assumed."""
HOP = 10e-6
"""Seconds from node to node, which a message over many nodes takes in turn. Assumed."""
ADAMW_BYTES = 30
"""Of a parameter: gradient, master weight, two moments read, the last three and the bf16 weight written."""
BUCKET_BYTES = 12
"""Of a parameter, in each reduction of ZeRO-2 and 3: into a bucket, averaged, out of it. Assumed."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. The parts of all micro-batches are those of the slowest stage."""

    matmul: float
    attention: float
    elementwise: float
    recompute: float
    tensor: float
    """Messages of tensor, sequence and context parallelism; nothing overlaps them."""
    pipeline: float
    bubble: float
    gradients: float
    """Summing, clipping, AdamW."""
    replicas: float
    """Messages of ZeRO that nothing hides."""
    host: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def stage_times(config: RunConfig, replicas: int, gpu: Gpu, gpus_per_node: int) -> list[StepTime]:
    """Of a step if every stage were as slow as this one; the slowest is the estimate.

    1F1B: (micro-batches + stages - 1) times a stage's forward and backward pass (Narayanan et al., arXiv 2104.04473,
    section 2.2.1).
    """
    stages = stage_parameters(config.model, config.parallel)
    return [_stage(config, at, stages, replicas, gpu, gpus_per_node) for at in range(len(stages))]


def bubble_fraction(stages: int, micro_batches: int) -> float:
    """Of a step that a stage waits: (p - 1) / (m + p - 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def message_time(messages: Iterable[Message], config: RunConfig, replicas: int, gpu: Gpu, gpus_per_node: int) -> float:
    """One after the other. A ring passes every node in turn, an all-reduce over many is a tree up and down."""
    seconds = 0.0
    for message in messages:
        nodes = -(-message.ranks // ranks_in_node(message, config, replicas, gpus_per_node))
        hops = {"all-reduce": 2 * math.log2(nodes), "send": 0.0}.get(message.operation, nodes - 1.0)
        speed = LINK * bandwidth(message, config, replicas, gpu, gpus_per_node)
        seconds += message.wire_bytes / speed + (LATENCY + HOP * hops) * message.times
    return seconds


def attention_share(seq_length: int, head_dim: int) -> float:
    """Of the peak that attention reaches."""
    return ATTENTION * seq_length / (seq_length + HALF_RATE_TOKENS) * (NARROW_HEADS if head_dim < 128 else 1.0)


def ranks_in_node(message: Message, config: RunConfig, replicas: int, gpus_per_node: int) -> int:
    """Of a message's group. Ranks are numbered node by node."""
    tensor = config.parallel.tensor_model_parallel_size
    stride = {"tensor": 1, "context": tensor, "replica": tensor, "pipeline": tensor * replicas}[message.axis]
    return max(1, min(message.ranks, gpus_per_node // stride))


def bandwidth(message: Message, config: RunConfig, replicas: int, gpu: Gpu, gpus_per_node: int) -> float:
    """Bytes/s of a rank in this message. A group inside a node talks over NVLink.

    Across nodes a ring enters and leaves each node once, through as many adapters as the group has ranks there, while
    the node's other groups use theirs. A send to a neighbour uses one.
    """
    in_node = ranks_in_node(message, config, replicas, gpus_per_node)
    if in_node == message.ranks:
        return gpu.nvlink
    return gpu.network if message.operation == "send" else min(gpu.nvlink, in_node * gpu.network)


def _stage(
    config: RunConfig, stage: int, stages: list[StageParameters], replicas: int, gpu: Gpu, gpus_per_node: int
) -> StepTime:
    here, last = stages[stage], stage == len(stages) - 1
    micro_batches, zero = micro_batches_of(config, replicas), config.parallel.zero_stage
    work = micro_batch_work(config, here, last)
    per_product = 1 / (MATMUL * gpu.peak_flops)
    per_attention = 1 / (attention_share(config.model.seq_length, config.model.kv_channels) * gpu.peak_flops)
    matmul, attention = micro_batches * work.matmul * per_product, micro_batches * work.attention * per_attention
    recompute = work.recomputed_matmul * per_product + work.recomputed_attention * per_attention
    elementwise = micro_batches * work.elementwise / (ELEMENTWISE * gpu.memory_bandwidth)

    by_axis: dict[str, list[Message]] = {"tensor": [], "context": [], "pipeline": [], "replica": []}
    for message in step_messages(config, replicas, stage):
        by_axis[message.axis].append(message)
    tied = [message for message in by_axis["pipeline"] if message.operation != "send"]
    sends = [message for message in by_axis["pipeline"] if message.operation == "send"]

    def spent(messages: list[Message]) -> float:
        return message_time(messages, config, replicas, gpu, gpus_per_node)

    tensor, pipeline = spent(by_axis["tensor"] + by_axis["context"]), spent(sends)
    compute = matmul + attention + elementwise + micro_batches * recompute
    busy = compute + tensor + pipeline
    passes = 3 if config.parallel.recompute == "full" else 2
    launching = 0.0 if config.training.cuda_graph else micro_batches * passes * here.blocks * HOST_PASS
    launching += HOST_COLLECTIVE * sum(message.times for message in by_axis["tensor"] + by_axis["context"])
    # DeepSpeed overlaps ZeRO-2's reductions with the backward pass, and all of ZeRO-3's with both
    hidden_behind = {2: compute * 2 / 3, 3: compute}.get(zero, 0.0)
    own = here.total if zero == 0 else here.total / replicas
    traffic = ADAMW_BYTES * own + (0 if zero <= 1 else BUCKET_BYTES * here.total * micro_batches)
    traffic += (6 + 10 * (micro_batches - 1)) * (here.total if zero <= 1 else own)  # copied, then added to
    return StepTime(
        matmul=matmul,
        attention=attention,
        elementwise=elementwise,
        recompute=micro_batches * recompute,
        tensor=tensor,
        pipeline=pipeline,
        bubble=busy / micro_batches * (len(stages) - 1),
        gradients=traffic / (OPTIMIZER * gpu.memory_bandwidth),
        replicas=max(0.0, spent(by_axis["replica"]) - hidden_behind) + spent(tied),
        host=HOST + max(0.0, launching - compute - tensor),
    )
