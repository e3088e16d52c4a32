"""Messages of one optimizer step, per rank: what megasink and DeepSpeed send, and what that means on a wire.

Held against a count of torch.distributed's operations on gloo ranks (tests/plan/test_communication.py). Where the
volumes come from: tensor parallelism, Megatron-LM (arXiv 1909.08053, section 3); sequence parallelism, Korthikanti et
al. (arXiv 2205.05198, section 4.2.2); pipeline, 1F1B (arXiv 2104.04473, section 2.2); ZeRO (arXiv 1910.02054, section
7); context, DeepSpeed-Ulysses (arXiv 2309.14509, section 3.2). Statistics are left out: not every step has them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from megasink.config import RunConfig
from megasink.plan.activations import hidden_bytes
from megasink.plan.checkpoint_size import element_size
from megasink.plan.parameters import StageParameters, parameter_sizes, stage_parameters
from megasink.plan.shape import micro_batches_of, shape_of

Operation = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]
Axis = Literal["tensor", "context", "pipeline", "replica"]

PERSISTENT = 100_000
"""ZeRO-3 keeps parameters of up to so many elements gathered (ds_configs/zero3.json)."""
REUSE_DISTANCE = 1_000_000_000
"""ZeRO-3 keeps what it needs again within so many elements (stage3_max_reuse_distance)."""
FP32 = 4


@dataclass(frozen=True)
class Message:
    """`size` bytes of the whole buffer: an all-gather's output, a reduce-scatter's input, what a send sends."""

    kind: str
    operation: Operation
    axis: Axis
    ranks: int
    size: int
    times: int

    @property
    def wire_bytes(self) -> float:
        """Bytes this rank sends in all, by ring algorithms (the factors of NCCL's "bus bandwidth")."""
        share = (self.ranks - 1) / self.ranks
        factor = {"all-reduce": 2 * share, "send": 1.0}.get(self.operation, share)
        return factor * self.size * self.times


def step_messages(config: RunConfig, replicas: int, stage: int) -> list[Message]:
    """Of a rank of one pipeline stage; messages of a few numbers are left out."""
    parallel = config.parallel
    parameters = stage_parameters(config.model, parallel)
    micro_batches = micro_batches_of(config, replicas)
    here, last = parameters[stage], len(parameters) - 1
    per_micro_batch = [
        *_tensor_parallel(config, here, first=stage == 0, last=stage == last),
        *_context_parallel(config, here),
        *_pipeline(config, first=stage == 0, last=stage == last),
    ]
    messages = [replace(message, times=message.times * micro_batches) for message in per_micro_batch]
    messages += _replicas(config, here, replicas, micro_batches, stage)
    if not config.model.untie_embeddings_and_output_weights and last > 0 and stage in (0, last):
        table = shape_of(config).vocabulary * config.model.hidden_size
        messages.append(Message("tied embedding", "all-reduce", "pipeline", 2, FP32 * table, 1))
    return [message for message in messages if message.ranks > 1 and message.times > 0]


def _tensor_parallel(config: RunConfig, here: StageParameters, first: bool, last: bool) -> Iterator[Message]:
    """Two tensor-parallel regions a block, entered and left once forward and once backward.

    Recomputation enters and leaves again, but for the last region's end, whose result nobody needs.
    """
    shape, ranks = shape_of(config), config.parallel.tensor_model_parallel_size
    hidden = shape.tokens * shape.hidden * shape.element
    again = config.parallel.recompute != "none"
    entered_again, left_again = (2 * here.blocks, here.blocks) if again else (0, 0)
    if config.parallel.sequence_parallel:
        # entering gathers, leaving scatters; the backward pass of each is the other
        gathers = 4 * here.blocks + entered_again + (1 if first else 0) + (1 if last else 0)
        scatters = 4 * here.blocks + left_again + (1 if first else 0) + (1 if last else 0)
        yield Message("tensor", "all-gather", "tensor", ranks, hidden, gathers)
        yield Message("tensor", "reduce-scatter", "tensor", ranks, hidden, scatters)
        norms = here.norms // shape.hidden
        yield Message("norm weights", "all-reduce", "tensor", ranks, shape.hidden * shape.element, norms)
    else:
        reduces = 4 * here.blocks + left_again + (1 if first else 0) + (1 if last else 0)
        yield Message("tensor", "all-reduce", "tensor", ranks, hidden, reduces)
    if config.model.num_key_value_heads < ranks:
        whole = config.model.num_key_value_heads * config.model.kv_channels * shape.hidden * shape.element
        yield Message("key-value weights", "all-reduce", "tensor", ranks, whole, 2 * here.blocks)
    if last:
        yield Message("cross entropy", "all-reduce", "tensor", ranks, FP32 * shape.tokens, 3)


def _context_parallel(config: RunConfig, here: StageParameters) -> Iterator[Message]:
    """Query, key, value and result of attention change between tokens and heads, forward and backward."""
    shape, ranks = shape_of(config), config.parallel.context_parallel_size
    passes = 3 if config.parallel.recompute != "none" else 2
    key_value = max(shape.key_value_heads, ranks) * config.model.kv_channels
    query = shape.tokens * shape.query * shape.element
    yield Message("context", "all-to-all", "context", ranks, query, 2 * passes * here.blocks)
    key_value_bytes = shape.tokens * key_value * shape.element
    yield Message("context", "all-to-all", "context", ranks, key_value_bytes, 2 * passes * here.blocks)


def _pipeline(config: RunConfig, first: bool, last: bool) -> Iterator[Message]:
    """Hidden states to the next stage, their gradients to the one before."""
    stages = config.parallel.pipeline_model_parallel_size
    sends = (0 if last else 1) + (0 if first else 1)
    yield Message("pipeline", "send", "pipeline", stages, hidden_bytes(config), sends)


def _replicas(
    config: RunConfig, here: StageParameters, replicas: int, micro_batches: int, stage: int
) -> Iterator[Message]:
    """Gradients and weights over the ranks that hold the same parameters.

    ZeRO 0 and 1 reduce once a step; bf16 scatters fp32 sums (megasink.train.bf16_step). ZeRO 2 and 3 reduce after each
    micro-batch, in the training dtype (2 by all-reduce, so that it sends twice what ZeRO's paper counts). ZeRO 3
    gathers weights for the forward pass, and once more for the backward pass where they are too many to keep.
    """
    zero, element = config.parallel.zero_stage, element_size(config)
    weights = element * here.total
    if zero <= 1:
        if zero == 1 and element == 2:
            yield Message("gradients", "reduce-scatter", "replica", replicas, FP32 * here.total, 1)
        else:
            yield Message("gradients", "all-reduce", "replica", replicas, weights, 1)
        if zero == 1:
            yield Message("weights", "all-gather", "replica", replicas, weights, 1)
    elif zero == 2:
        yield Message("gradients", "all-reduce", "replica", replicas, weights, micro_batches)
        yield Message("weights", "all-gather", "replica", replicas, weights, 1)
    else:
        yield Message("gradients", "reduce-scatter", "replica", replicas, weights, micro_batches)
        again = micro_batches * (2 if here.total > REUSE_DISTANCE else 1)
        for size, count in sorted(parameter_sizes(config.model, config.parallel, stage).items()):
            gathers = count * (1 if size <= PERSISTENT else again)
            yield Message("weights", "all-gather", "replica", replicas, element * size, gathers)
