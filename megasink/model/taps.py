"""Tap points of a block: statistics that leave the backward pass as gradients of zero leaves.

An identity with a second input, a leaf of zeros, whose backward returns (gradient, statistic): the leaf's gradient *is*
the statistic (paper.md section 4). No side effects, so it is exact in eager mode, under torch.compile and under
activation recomputation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import Axis


class BlockTaps(NamedTuple):
    """The leaves of one block for one micro-batch. T is the rank's own share of the sequence under sequence parallelism
    for the entries marked (local)."""

    attention_norm_grad: Tensor
    """[B, T] (local): sum of squares of g2 = dL/d(attention RMSNorm output)."""
    value_grad: Tensor
    """[B, T, K of this rank]: sum of squares of dL/dv, v as the value projection emits it."""
    value: Tensor
    """[B, T, K of this rank]: sum of squares of v."""
    attention_sink: Tensor
    """[B, heads of this rank]: mean over queries i > 0 of A_{i,0}."""
    mlp_output: Tensor
    """[B, T] (local): sum of squares of the MLP's output."""
    block_output: Tensor
    """[B, T] (local): sum of squares of the block's residual output."""


def tap_gradient(tensor: Tensor, leaf: Tensor | None) -> Tensor:
    """Identity; in the backward pass the leaf receives sum_d (dL/dtensor)^2 over the last dimension."""
    return tensor if leaf is None else _GradientTap.apply(tensor, leaf)


def tap_shared_gradient(tensor: Tensor, leaf: Tensor, axis: Axis, head: int, num_heads: int) -> Tensor:
    """As tap_gradient for the one of `num_heads` replicated key-value heads this rank uses, [B, T, 1, D].

    Ranks that share a head each hold a part of its gradient; the parts are summed before the norm is taken.
    """
    return _SharedGradientTap.apply(tensor, leaf, axis, head, num_heads)


def tap_value(carrier: Tensor, leaf: Tensor | None, statistic: Tensor) -> Tensor:
    """Identity on `carrier`; in the backward pass the leaf receives `statistic`, a value of the forward pass."""
    return carrier if leaf is None else _ValueTap.apply(carrier, leaf, statistic.detach())


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Over the last dimension, in fp32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).square().sum(dim=-1)


class _GradientTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, leaf):
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, sum_of_squares(gradient)


class _SharedGradientTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, leaf, axis, head, num_heads):
        ctx.axis, ctx.head, ctx.num_heads = axis, head, num_heads
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        by_head = gradient.new_zeros((ctx.num_heads, *gradient.shape))
        by_head[ctx.head] = gradient
        return gradient, sum_of_squares(all_reduce(by_head, ctx.axis)[ctx.head]), None, None, None


class _ValueTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, carrier, leaf, statistic):
        ctx.save_for_backward(statistic)
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, ctx.saved_tensors[0], None
