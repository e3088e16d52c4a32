"""Bytes that autograd keeps of a micro-batch between its forward and its backward pass, tensor by tensor.

The way of counting is that of "Reducing Activation Recomputation in Large Transformer Models" (Korthikanti et al.,
arXiv 2205.05198, section 4); the tensors are those of megasink/model. Two forms: `compiled`, where torch.compile's
partitioner chooses what to keep (its min-cut, the same code for a CPU and for CUDA; tests/plan counts what it keeps),
and eager.
"""

from megasink.config import RunConfig
from megasink.plan.shape import Shape, copied_weights, shape_of

FP32 = 4


def block_bytes(config: RunConfig, compiled: bool) -> int:
    """Of one block, its input included (where the block keeps it); cos and sin tables, which all share, are not."""
    shape, mode = shape_of(config), config.parallel.recompute
    residual = shape.residual_tokens * shape.hidden * shape.element
    if mode == "full":
        return residual
    if mode == "selective":
        return residual + _matrix_products(config, shape, compiled)
    return _compiled_block(config, shape) if compiled else _eager_block(config, shape)


def _matrix_products(config: RunConfig, shape: Shape, compiled: bool) -> int:
    """megasink.model.recompute's selective mode: results of matrix products and attention.

    The last product's is needed by nobody, but eager recomputation keeps it, and the compiler does where it is summed
    over ranks, or where statistics are taken of it.
    """
    width = shape.query + 2 * shape.key_value + shape.query + shape.hidden + 2 * shape.ffn
    if not compiled or config.parallel.tensor_model_parallel_size > 1 or config.sink_stats.sink_stats != "off":
        width += shape.hidden
    return shape.tokens * (width * shape.element + shape.heads * FP32)


def _compiled_block(config: RunConfig, shape: Shape) -> int:
    """What the min-cut partitioner keeps: inputs of all products, and little that is cheap to compute again."""
    tokens, hidden, element = shape.tokens, shape.hidden, shape.element
    residual = 2 * shape.residual_tokens * (hidden * element + FP32)  # both norms' inputs and 1 / rms
    products = tokens * (2 * hidden + 3 * shape.ffn) * element  # inputs of qkv and gate-up; gate-up; input of down
    return residual + products + _attention(config, shape, compiled=True) + copied_weights(config) * element


def _eager_block(config: RunConfig, shape: Shape) -> int:
    tokens, hidden, element = shape.tokens, shape.hidden, shape.element
    widened = FP32 if element == 2 else 0  # in fp32 the norm's input is kept by others, or is no copy
    norms = 2 * shape.residual_tokens * (hidden * (element + widened) + 2 * FP32)
    products = tokens * (2 * hidden + 3 * shape.ffn) * element
    return norms + products + _attention(config, shape, compiled=False) + copied_weights(config) * element


def _attention(config: RunConfig, shape: Shape, compiled: bool) -> int:
    """Fused qkv product, what attention takes (rotated query and key, value), its result and log-sum-exp."""
    v_scale, context = config.model.v_scale, config.parallel.context_parallel_size
    fused = shape.query + 2 * shape.key_value
    # megasink.model.rotary_v_scale's kernel copies what V-scale does not change
    copied = v_scale == "off" and compiled and shape.element == 2
    value_is_a_view = v_scale != "on" and not copied and shape.repeats == 1 and context == 1
    fused_is_kept = v_scale != "off" or value_is_a_view
    key_value = shape.query if shape.repeats > 1 or context == 1 else max(shape.key_value, shape.query)
    width = shape.query + key_value + (0 if value_is_a_view else key_value) + shape.query
    width += fused if fused_is_kept else 0
    if context > 1:  # the kernel's result and, with the tokens of this rank, the input of the output product
        width += shape.query
    small = shape.heads + (shape.key_value_heads if v_scale == "on" and compiled else 0)
    return shape.tokens * (width * shape.element + small * FP32)


def head_bytes(config: RunConfig, compiled: bool) -> int:
    """After the last block: the final norm, the output layer's input, logits kept by cross entropy."""
    shape = shape_of(config)
    widened = FP32 if shape.element == 2 and not compiled else 0
    norm = shape.residual_tokens * (shape.hidden * (shape.element + widened) + FP32)
    return norm + shape.tokens * (shape.hidden * shape.element + FP32) + logits_bytes(config)


def logits_bytes(config: RunConfig) -> int:
    shape = shape_of(config)
    return shape.tokens * shape.vocabulary * shape.element


def hidden_bytes(config: RunConfig) -> int:
    """Hidden states between two blocks, or two pipeline stages."""
    shape = shape_of(config)
    return shape.residual_tokens * shape.hidden * shape.element


def micro_batches_in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """1F1B holds the forward passes of as many micro-batches as stages follow, its own included (Narayanan et al.,
    arXiv 2104.04473, section 2.2.1; DeepSpeed's TrainSchedule)."""
    return min(stages - stage, micro_batches)
