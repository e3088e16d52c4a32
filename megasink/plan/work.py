"""Floating-point operations and memory traffic of a rank's part of one micro-batch, forward and backward."""

from dataclasses import dataclass

from megasink.config import RunConfig
from megasink.plan.parameters import StageParameters
from megasink.plan.shape import copied_weights, shape_of

RECOMPUTED_TRAFFIC = 1.4
"""Passes over memory with recomputation for those without: the forward pass's third, and more. Assumed."""


@dataclass(frozen=True)
class Work:
    """Attributes:
    matmul, attention: floating-point operations; attention's causal half.
    recomputed_matmul, recomputed_attention: those of --recompute full, done again and not counted in MFU.
    elementwise: bytes read and written by everything else.
    """

    matmul: float
    attention: float
    recomputed_matmul: float
    recomputed_attention: float
    elementwise: float


def micro_batch_work(config: RunConfig, here: StageParameters, last: bool) -> Work:
    """Of a pipeline stage. 2 operations per weight and token forward and 4 backward; attention's two products see T / 2
    keys on average (Narayanan et al., arXiv 2104.04473, appendix; megasink.model.flops counts the same)."""
    shape = shape_of(config)
    full = config.parallel.recompute == "full"
    of_rank = here.attention + here.mlp
    if config.model.num_key_value_heads < config.parallel.tensor_model_parallel_size:
        # held whole, but multiplied only with the rows the rank's queries need
        used = 2 * here.blocks * shape.hidden * shape.key_value
        of_rank = here.attention - (here.whole - here.norms - here.v_scale) + used + here.mlp
    blocks = 2.0 * shape.tokens * of_rank
    # all tokens of each sequence; context parallelism gives a rank fewer heads instead of fewer tokens
    attention = 2.0 * shape.tokens * here.blocks * shape.query * config.model.seq_length
    output = 2.0 * shape.tokens * shape.vocabulary * shape.hidden if last else 0.0
    return Work(
        matmul=3 * (blocks + output),
        attention=3 * attention,
        # recomputation stops before each block's last product, whose result nobody needs
        recomputed_matmul=blocks - 2.0 * shape.tokens * here.blocks * shape.ffn * shape.hidden if full else 0.0,
        recomputed_attention=attention if full else 0.0,
        elementwise=here.blocks * _block_traffic(config) + (_head_traffic(config) if last else 0.0),
    )


def _block_traffic(config: RunConfig) -> float:
    """Passes over memory of the fused kernels that the profile in docs/performance.md shows, as bytes.

    SwiGLU reads 2 and writes 1 inner widths forward, and reads 3 and writes 2 backward; a norm with its residual sum
    reads and writes 7 hidden widths in all; RoPE, V-scale and changes of layout 13 query widths; weights that
    are copied together are read and written, and their gradients split.
    """
    shape = shape_of(config)
    again = 1.0 if config.parallel.recompute == "none" else RECOMPUTED_TRAFFIC
    tokens = 8 * shape.ffn * shape.tokens + 13 * shape.query * shape.tokens
    residual = 14 * shape.hidden * shape.residual_tokens
    return shape.element * (again * (tokens + residual) + 4 * copied_weights(config))


def _head_traffic(config: RunConfig) -> float:
    """Cross entropy reads the logits twice and writes their gradient once; the final norm as those of a block."""
    shape = shape_of(config)
    return shape.element * (3 * shape.vocabulary * shape.tokens + 7 * shape.hidden * shape.residual_tokens)
