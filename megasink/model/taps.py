"""Tap points of a block: statistics that leave the backward pass as gradients of leaves.

An identity with a second input, a leaf whose content is never read, whose backward returns (gradient, statistic): the
leaf's gradient *is* the statistic. No side effects, so it is exact in eager mode, under
torch.compile and under activation recomputation.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import Axis


class BlockTaps(NamedTuple):
    """The leaves of one block for one micro-batch; None: not wanted.

    Squares of norms, so that they may be summed over heads and ranks. B sequences, T positions, N and K the query and
    key-value heads of this rank. Under sequence parallelism T is the rank's own share in the entries marked (local).
    """

    # light: cheap enough for every step
    attention_norm_grad: Tensor | None = None
    """[B, T] (local): |g2|^2, g2 = dL/d(attention RMSNorm output)."""
    value_grad: Tensor | None = None
    """[B, T, K]: |dL/dv|^2, v as the value projection emits it."""
    value: Tensor | None = None
    """[B, T, K]: |v|^2."""
    theta: Tensor | None = None
    """[K]: V-scale's theta, as the forward pass used it; None without V-scale."""
    attention_sink: Tensor | None = None
    """[B, N]: sum over queries i > 0 of A_{i,0}."""
    attention_lse_max: Tensor | None = None
    """[B, N]: largest log-sum-exp of a row of attention logits."""
    mlp_output: Tensor | None = None
    """[B, T] (local): |MLP output|^2."""
    block_output: Tensor | None = None
    """[B, T] (local): |x_out|^2, the block's residual output."""

    # full: everything else
    query_grad: Tensor | None = None
    """[B, T, N]: |dL/dq|^2 before RoPE (a rotation, so after it too)."""
    key_grad: Tensor | None = None
    """[B, T, K]: |dL/dk|^2."""
    value_hat_grad: Tensor | None = None
    """[B, T, K]: |dL/dv_hat|^2, after V-scale."""
    value_hat: Tensor | None = None
    """[B, T, K]: |v_hat|^2."""
    attention_paths: Tensor | None = None
    """[B, T, 6] (local): |g2_p|^2 of the query, key and value path p, then g2_p . g2 of the same."""
    attention_entropy: Tensor | None = None
    """[B, T, N]: entropy of each query's row, nats."""
    attention_heads: Tensor | None = None
    """[B, N, HEAD_PATTERNS]: see attention_patterns.head_patterns."""
    block_input_grad: Tensor | None = None
    """[B, T] (local): |dL/dh^l|^2 = |g1 + g3|^2 of the attention branch."""
    middle_grad: Tensor | None = None
    """[B, T] (local): |dL/dh^{l+1/2}|^2: g1 of the attention branch, g1 + g3 of the MLP branch."""
    block_output_grad: Tensor | None = None
    """[B, T] (local): |dL/dh^{l+1}|^2: g1 of the MLP branch."""
    attention_norm_input_grad: Tensor | None = None
    """[B, T] (local): |g3|^2 of the attention branch, J_RMSNorm^T g2 before it joins the residual's gradient."""
    mlp_norm_grad: Tensor | None = None
    """[B, T] (local): |g2|^2 of the MLP branch."""
    mlp_norm_input_grad: Tensor | None = None
    """[B, T] (local): |g3|^2 of the MLP branch."""
    block_input: Tensor | None = None
    """[B, T] (local): |h^l|^2."""
    middle: Tensor | None = None
    """[B, T] (local): |h^{l+1/2}|^2."""
    block_output_moments: Tensor | None = None
    """float64 [B, 4] (local): sums of a, a^2, a^3, a^4 over the elements of x_out."""
    mlp_output_moments: Tensor | None = None
    """float64 [B, 4] (local): the same of the MLP output."""
    block_output_order: Tensor | None = None
    """[B, 3]: max |a| (local), median |a|, number of massive activations (local) of x_out."""
    mlp_output_order: Tensor | None = None
    """[B, 3]: the same of the MLP output."""

    # no leaf: for analysis after training, which looks at more than a report holds
    attention_observer: Callable[..., None] | None = None
    """Called in the forward pass with query, key, value_hat [B, N, T, D], log-sum-exp [B, N, T] and first_token."""


def tap_gradient(tensor: Tensor, leaf: Tensor | None) -> Tensor:
    """Identity; in the backward pass the leaf receives sum_d (dL/dtensor)^2 over the last dimension."""
    return tensor if leaf is None else _GradientTap.apply(tensor, leaf)


def tap_shared_gradient(tensor: Tensor, leaf: Tensor | None, axis: Axis, head: int, num_heads: int) -> Tensor:
    """As tap_gradient for the one of `num_heads` replicated key-value heads this rank uses, [B, T, 1, D].

    Ranks that share a head each hold a part of its gradient; the parts are summed before the norm is taken.
    """
    return tensor if leaf is None else _SharedGradientTap.apply(tensor, leaf, axis, head, num_heads)


def tap_value(carrier: Tensor, leaf: Tensor | None, statistic: Callable[..., Tensor], *inputs) -> Tensor:
    """Identity on `carrier`; in the backward pass the leaf receives statistic(*inputs), taken in the forward pass.

    Without gradients there is no backward pass: the leaf itself becomes the statistic at once.
    """
    if leaf is None:
        return carrier
    if not torch.is_grad_enabled():
        leaf.copy_(statistic(*inputs))
        return carrier
    return _ValueTap.apply(carrier, leaf, statistic(*inputs).detach())


def on_gradients(leaves: Sequence[Tensor], look: Callable[[tuple[Tensor, ...]], None]) -> None:
    """Call `look` with the leaves' gradients, once, in the backward pass that brings the last of them."""

    def once(gradients: tuple[Tensor, ...]) -> None:
        hook.remove()  # it holds the leaves and they hold it, by a way that Python's collector does not see
        look(gradients)

    hook = torch.autograd.graph.register_multi_grad_hook(leaves, once)


def split_paths(tensor: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three copies [B, T, H], for the query, key and value path; the leaf [B, T, 6] receives attention_paths."""
    return _SplitPaths.apply(tensor, leaf)


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Over the last dimension, in fp32 at least."""
    return widen(tensor).square().sum(dim=-1)


def widen(tensor: Tensor) -> Tensor:
    """In fp32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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


class _SplitPaths(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, leaf):
        return tensor.view_as(tensor), tensor.view_as(tensor), tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, *gradients):
        wide = [widen(gradient) for gradient in gradients]
        total = wide[0] + wide[1] + wide[2]
        squares = [path.square().sum(dim=-1) for path in wide]
        products = [(path * total).sum(dim=-1) for path in wide]
        return total.to(gradients[0].dtype), torch.stack(squares + products, dim=-1)
