"""Matrix products of linear layers in fp8 (arXiv 2209.05433), each tensor with one scale taken from it in the step.

Inputs and weights are e4m3, which has the finer steps. Gradients of outputs are e5m2 (`hybrid`), whose 2^32 from the
least to the largest number hold the gradients of all positions under one scale; or e4m3 too, with 2^18.

Scales are powers of two. Multiplying with them is exact, and within a format's normal range a value then rounds to the
same eight bits whatever the scale: shares of a tensor that are scaled apart (tensor-parallel ranks, micro-batches)
differ only in values some 2^13 (e5m2: 2^28) below their largest.

A GPU multiplies fp8 only with both operands contiguous along the summed dimension, so each tensor is cast twice, as it
is and transposed. Compiled, its largest value is one pass over it and both casts are at best another.
"""

from typing import Literal

import torch
from torch import Tensor

from megasink.errors import UserError

Fp8 = Literal["off", "hybrid", "e4m3"]

INPUT_FORMAT = torch.float8_e4m3fn
GRADIENT_FORMATS = {"off": None, "hybrid": torch.float8_e5m2, "e4m3": torch.float8_e4m3fn}
"""Format of the outputs' gradients; None: products stay as they are."""

_LARGEST_EXPONENT = {torch.float8_e4m3fn: 7, torch.float8_e5m2: 14}
"""A tensor's largest value is scaled into [2^this, 2^(this + 1)); the formats end at 448 and 57,344."""


def check_fp8_device(device: torch.device) -> None:
    """Raises UserError on a GPU without fp8 products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--fp8: {name} cannot multiply fp8 (H100, L40 and newer can); give --fp8 off")


def fp8_linear(
    hidden_states: Tensor, weights: list[Tensor], gradient_format: torch.dtype, joined: Tensor | None = None
) -> Tensor:
    """x W^T with W the rows of all weights, and both products of its backward pass, in fp8.

    Args:
        hidden_states: [..., in], bf16 or fp32; in, the rows of W and the product of the other sizes are multiples of
            16 on a GPU.
        weights: [out, in] each; each receives its rows of the gradient.
        gradient_format: that of the output's gradient, one of GRADIENT_FORMATS.
        joined: the weights as one without a copy, if they lie so.

    Returns:
        [..., sum of out] of the dtype of hidden_states.
    """
    if joined is None and len(weights) > 1:
        joined = torch.cat([weight.detach() for weight in weights])
    return _Fp8Linear.apply(hidden_states, joined, gradient_format, *weights)


def quantise(values: Tensor, form: torch.dtype) -> tuple[Tensor, Tensor]:
    """`values` as fp8 of their shape, row by row in memory, and the power of two (fp32, no dimensions) that they are
    multiplied with to be themselves again: NaN if not all are finite, since a GPU casts infinity to the largest number.
    """
    scale, inverse = _scales(values.abs().amax().float(), _LARGEST_EXPONENT[form])
    return (values.float() * scale).to(form).contiguous(), inverse


def _scales(largest: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    """2^exponent / (largest rounded down to a power of two), and its inverse: made of bits, so without rounding."""
    found = (largest.view(torch.int32) >> 23) & 255
    biased = (254 + exponent - found).clamp(1, 253)
    scale, inverse = ((bits << 23).view(torch.float32) for bits in (biased, 254 - biased))
    return scale, torch.where(found == 255, torch.nan, inverse)


def scaled_product(left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, out: torch.dtype, fast: bool):
    """left right^T of [M, K] and [N, K], both contiguous. `fast` sums with fewer bits, as is usual in forward passes
    alone."""
    return torch._scaled_mm(
        left, right.t(), scale_a=left_scale, scale_b=right_scale, out_dtype=out, use_fast_accum=fast
    )


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):  # without names of their own: see _JoinedLinear
        hidden_states, joined, gradient_format, *weights = inputs
        joined = weights[0] if joined is None else joined  # not an argument twice: the compiler would stop there
        states, states_scale = quantise(hidden_states.flatten(0, -2), INPUT_FORMAT)
        weight, weight_scale = quantise(joined, INPUT_FORMAT)
        # the weight itself and not its cast: it is there anyhow
        ctx.save_for_backward(states, states_scale, joined)
        ctx.gradient_format = gradient_format
        ctx.rows = [each.shape[0] for each in weights]
        product = scaled_product(states, states_scale, weight, weight_scale, hidden_states.dtype, fast=True)
        return product.unflatten(0, hidden_states.shape[:-1])

    @staticmethod
    def backward(ctx, gradient):
        states, states_scale, joined = ctx.saved_tensors
        weight, weight_scale = quantise(joined, INPUT_FORMAT)
        upstream, upstream_scale = quantise(gradient.flatten(0, -2), ctx.gradient_format)
        transposed = [each.t().contiguous() for each in (states, weight, upstream)]
        kinds = {"out": gradient.dtype, "fast": False}
        states_gradient = scaled_product(upstream, upstream_scale, transposed[1], weight_scale, **kinds)
        weight_gradient = scaled_product(transposed[2], upstream_scale, transposed[0], states_scale, **kinds)
        return states_gradient.unflatten(0, gradient.shape[:-1]), None, None, *weight_gradient.split(ctx.rows)
