"""Memory of a rank at its peak, by kind: what DeepSpeed's optimizers and this package keep, and when it is most.

Static parts follow ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3), with the dtypes of
megasink/config/deepspeed.py: bf16 weights P x 2 bytes, gradients summed in fp32 (P x 4), fp32 master weights and
AdamW's moments (P x 12).
"""

from dataclasses import asdict, dataclass, replace

from megasink.config import RunConfig
from megasink.plan.activations import (
    block_bytes,
    head_bytes,
    hidden_bytes,
    logits_bytes,
    micro_batches_in_flight,
)
from megasink.plan.checkpoint_size import ADAM_BYTES, element_size
from megasink.plan.parameters import StageParameters, stage_parameters
from megasink.plan.shape import micro_batches_of, shape_of, weights_are_flat

REDUCE_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once (reduce_bucket_size, and the pipeline engine's constant)."""
LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3 gathers so many parameters at most (stage3_max_live_parameters)."""
BENCHMARK_MATRIX = 2 * 4096**2 * 2
"""megasink.train.straggler's matrix and its product, bf16."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank at the peak of a step without statistics, as torch's allocator counts them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass, of all micro-batches in flight, and hidden states on their way between stages."""
    logits: int
    backward: int
    """What one layer's backward pass needs besides: the logits' gradient, or a block's."""
    buffers: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def stage_memory(config: RunConfig, replicas: int, compiled: bool) -> list[Memory]:
    """Of a rank of every pipeline stage.

    Args:
        replicas: data x context parallel ranks, over which ZeRO cuts.
        compiled: blocks are compiled, as they are on a GPU unless --no-compile is given.
    """
    stages = stage_parameters(config.model, config.parallel)
    return [_stage(config, parameters, at, len(stages), replicas, compiled) for at, parameters in enumerate(stages)]


def static_bytes(config: RunConfig, parameters: int, replicas: int) -> tuple[int, int, int]:
    """(weights, gradients, optimizer) of a rank that holds so many parameters, between two steps."""
    element, zero = element_size(config), config.parallel.zero_stage
    own = -(-parameters // replicas)
    if zero == 0:  # fp32 only: the weights are their own masters
        return element * parameters, element * parameters, 8 * parameters
    weights = element * (own if zero == 3 else parameters)
    return weights, 4 * (parameters if zero == 1 else own), ADAM_BYTES * own


def _stage(
    config: RunConfig, parameters: StageParameters, stage: int, stages: int, replicas: int, compiled: bool
) -> Memory:
    parallel = config.parallel
    first, last = stage == 0, stage == stages - 1
    micro_batches = micro_batches_of(config, replicas)
    in_flight = micro_batches_in_flight(stage, stages, micro_batches)
    pipelined = parallel.zero_stage <= 1
    weights, gradients, optimizer = static_bytes(config, parameters.total, replicas)

    activations = in_flight * parameters.blocks * block_bytes(config, compiled)
    buffers = max(2, in_flight) if micro_batches > 1 else 1  # DeepSpeed's pipe_buffers
    if stages > 1:  # a copy of each input, each output, and the gradient that comes back
        activations += hidden_bytes(config) * ((0 if first else buffers) + (0 if last else buffers + 1))
    logits = 0
    if last:
        activations += in_flight * (head_bytes(config, compiled) - logits_bytes(config))
        logits = logits_bytes(config) * (buffers if pipelined else 1)  # outputs stay in their buffers
    backward = _backward(config, compiled, last)
    moving = _moving(config, parameters.total, replicas)
    # gradients are reduced after the backward pass, where activations have left room (ZeRO 0 and 1)
    room = activations + logits + backward if pipelined else 0
    buffers = BENCHMARK_MATRIX + max(0, moving - room)
    return Memory(weights, gradients, optimizer, activations, logits, backward, buffers)


def _backward(config: RunConfig, compiled: bool, last: bool) -> int:
    """The larger of the head's and a block's needs. A block's gradients: of the MLP's inner products and both ends."""
    shape, mode = shape_of(config), config.parallel.recompute
    gate_up = 2 * shape.ffn * shape.hidden * shape.element
    block = shape.tokens * (3 * shape.ffn + 2 * shape.hidden) * shape.element + gate_up
    if mode == "full":
        once_more = replace(config, parallel=replace(config.parallel, recompute="none"))
        block += block_bytes(once_more, compiled)
    elif mode == "selective":  # the MLP's part is computed again first
        block += shape.tokens * (shape.ffn + shape.hidden) * shape.element
        block += 0 if weights_are_flat(config) else gate_up
    if not last:
        return block
    head = logits_bytes(config) + shape.tokens * shape.hidden * shape.element
    return max(block, head + shape.vocabulary * shape.hidden * shape.element)


def _moving(config: RunConfig, parameters: int, replicas: int) -> int:
    """Buckets of gradients on their way, and under ZeRO-3 weights that are gathered."""
    element, zero = element_size(config), config.parallel.zero_stage
    bucket = min(parameters, REDUCE_BUCKET)
    if zero == 1 and element == 2:
        return 0  # each rank's part is summed where it is
    if zero <= 1:
        return element * bucket
    at_step = 4 * -(-parameters // replicas)  # the optimizer's flat copy of the gradients
    if zero == 2:  # two buckets of a fixed size, so that one fills while the other leaves (overlap_comm)
        return max(2 * element * REDUCE_BUCKET, at_step)
    return element * (REDUCE_BUCKET + min(parameters, LIVE_PARAMETERS)) + at_step
