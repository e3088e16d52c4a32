"""RMSNorm where a branch leaves the residual stream, on a GPU: one kernel for the gradient of both ways.

Same numbers as megasink.model.norm, in fp32, cast once. A compiler makes the input's and the weight's gradient at half
of the memory's speed: it sums over rows in one kernel, over columns in two more.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without; only CUDA tensors need it
    triton = None

_PROGRAMS = 1024
"""At most, each with a sum of the weight's gradient of its own: eight for each multiprocessor of an H100."""


def usable(hidden_states: Tensor) -> bool:
    """On this device, for this dtype and width: a program holds a row in registers."""
    fits = hidden_states.dtype == torch.bfloat16 and hidden_states.shape[-1] <= 8192
    return triton is not None and fits and hidden_states.is_cuda


def residual_norm(
    hidden_states: Tensor, weight: Tensor, epsilon: float, grad_tap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The residual stream, to be used from here on in its place, and its RMSNorm.

    Args:
        hidden_states: [B, T, H].
        weight: [H], of the same dtype.
        grad_tap: leaf [B, T], see BlockTaps.attention_norm_grad.
    """
    return _ResidualNorm.apply(hidden_states, weight, epsilon, grad_tap)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, epsilon, grad_tap):
        wide = hidden_states.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden_states, weight, scale)
        return hidden_states.view_as(hidden_states), weight * (wide * scale).to(hidden_states.dtype)

    @staticmethod
    def backward(ctx, stream_grad, norm_grad):
        hidden_states, weight, scale = (saved.contiguous() for saved in ctx.saved_tensors)
        stream_grad, norm_grad = stream_grad.contiguous(), norm_grad.contiguous()
        gradient, squares = torch.empty_like(hidden_states), torch.empty_like(scale).squeeze(-1)
        rows, columns = squares.numel(), hidden_states.shape[-1]
        programs = min(_PROGRAMS, rows)
        weight_grads = scale.new_empty(programs, columns)
        block = triton.next_power_of_2(columns)
        _residual_rms_norm_gradient_kernel[(programs,)](
            *(hidden_states, weight, scale, stream_grad, norm_grad, gradient, weight_grads, squares, rows, columns),
            block,
            num_warps=8 if columns > 4096 else 4,
        )
        weight_grad = weight_grads.sum(dim=0).to(weight.dtype)
        return gradient, weight_grad, None, squares if ctx.needs_input_grad[3] else None


if triton is not None:

    @triton.jit
    def _residual_rms_norm_gradient_kernel(
        hidden_states, weight, scale, stream_grad, norm_grad, gradient, weight_grads, squares, rows, columns,
        block: tl.constexpr,
    ):  # fmt: skip
        program, programs = tl.program_id(0), tl.num_programs(0)
        column = tl.arange(0, block)
        inside = column < columns
        weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        weight_grad = tl.zeros([block], dtype=tl.float32)
        for row in range(program, rows, programs):
            at = tl.cast(row, tl.int64) * columns + column
            upstream = tl.load(norm_grad + at, mask=inside, other=0.0).to(tl.float32)
            row_scale = tl.load(scale + row)
            normed = tl.load(hidden_states + at, mask=inside, other=0.0).to(tl.float32) * row_scale
            beside = tl.load(stream_grad + at, mask=inside, other=0.0).to(tl.float32)
            weight_grad += upstream * normed
            tl.store(squares + row, tl.sum(upstream * upstream, axis=0))
            upstream *= weights
            along = tl.sum(upstream * normed, axis=0) / columns
            tl.store(gradient + at, beside + row_scale * (upstream - normed * along), mask=inside)
        tl.store(weight_grads + program * columns + column, weight_grad, mask=inside)
