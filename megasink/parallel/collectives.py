"""Differentiable collectives of tensor and sequence parallelism. Each is the identity on an axis of one rank.

| forward                | backward       | function                    |
|------------------------|----------------|-----------------------------|
| identity               | all-reduce     | `copy_to_tensor_parallel`   |
| all-reduce             | identity       | `reduce_from_tensor_parallel` |
| all-gather along T     | reduce-scatter | `gather_sequence`           |
| reduce-scatter along T | all-gather     | `reduce_scatter_sequence`   |
| all-to-all             | all-to-all     | `tokens_to_heads`, `heads_to_tokens` |

Sequences lie on dimension 1 of `[B, T, ...]`.

A forward pass here never ends in a tensor written in place, but in a view of it: torch 2.11 compiles the former into a
result without a gradient.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.parallel.layout import Axis

# torch 2.13 renamed these two and warns at the old names, which 2.11 has alone
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def copy_to_tensor_parallel(tensor: Tensor, axis: Axis) -> Tensor:
    """Hand a replicated tensor to rank-local work; its gradient is the sum over the ranks' gradients."""
    return tensor if axis.size == 1 else _Copy.apply(tensor, axis)


def reduce_from_tensor_parallel(tensor: Tensor, axis: Axis) -> Tensor:
    """Sum partial results of the ranks into a replicated tensor."""
    return tensor if axis.size == 1 else _Reduce.apply(tensor, axis)


def gather_sequence(tensor: Tensor, axis: Axis) -> Tensor:
    """[B, T / ranks, ...] on each rank -> [B, T, ...] on all; gradients are summed and scattered back."""
    return tensor if axis.size == 1 else _GatherSequence.apply(tensor, axis)


def reduce_scatter_sequence(tensor: Tensor, axis: Axis) -> Tensor:
    """Sum partial [B, T, ...] over the ranks; each keeps its [B, T / ranks, ...]."""
    return tensor if axis.size == 1 else _ReduceScatterSequence.apply(tensor, axis)


def tokens_to_heads(tensor: Tensor, axis: Axis) -> Tensor:
    """[B, T / ranks, heads, D] -> [B, T, heads / ranks, D]: all tokens of a share of the heads (DeepSpeed-Ulysses,
    arXiv 2309.14509)."""
    return tensor if axis.size == 1 else _AllToAll.apply(tensor, axis, 2, 1)


def heads_to_tokens(tensor: Tensor, axis: Axis) -> Tensor:
    """[B, T, heads / ranks, D] -> [B, T / ranks, heads, D]."""
    return tensor if axis.size == 1 else _AllToAll.apply(tensor, axis, 1, 2)


def all_reduce(tensor: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Not differentiable: a reduced copy of the tensor (the tensor itself on an axis of one rank)."""
    if axis.size == 1:
        return tensor
    reduced = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, op=op, group=axis.group)
    return reduced


def _all_gather_sequence(tensor: Tensor, axis: Axis) -> Tensor:
    gathered = tensor.new_empty((axis.size, *tensor.shape))
    _all_gather(gathered.view(-1, *tensor.shape[1:]), tensor.contiguous(), group=axis.group)
    batch, local_length = tensor.shape[:2]
    return gathered.transpose(0, 1).reshape(batch, axis.size * local_length, *tensor.shape[2:])


def _reduce_scatter_sequence(tensor: Tensor, axis: Axis) -> Tensor:
    batch, length = tensor.shape[:2]
    by_rank = tensor.reshape(batch, axis.size, length // axis.size, *tensor.shape[2:]).transpose(0, 1).contiguous()
    scattered = tensor.new_empty(by_rank.shape[1:])
    reduce_scatter(scattered, by_rank.view(-1, *by_rank.shape[2:]), group=axis.group)
    return scattered


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, axis):
        ctx.axis = axis
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return all_reduce(gradient, ctx.axis), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, axis):
        return all_reduce(tensor, axis).view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, axis):
        ctx.axis = axis
        return _all_gather_sequence(tensor, axis)

    @staticmethod
    def backward(ctx, gradient):
        return _reduce_scatter_sequence(gradient, ctx.axis), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, axis):
        ctx.axis = axis
        scattered = _reduce_scatter_sequence(tensor, axis)
        return scattered.view_as(scattered)

    @staticmethod
    def backward(ctx, gradient):
        return _all_gather_sequence(gradient, ctx.axis), None


class _AllToAll(torch.autograd.Function):
    """Cut along one dimension, one piece to each rank; join what comes along another."""

    @staticmethod
    def forward(ctx, tensor, axis, cut, join):
        ctx.axis, ctx.cut, ctx.join = axis, cut, join
        sent = torch.stack(tensor.chunk(axis.size, dim=cut))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=axis.group)
        return torch.cat(received.unbind(), dim=join)

    @staticmethod
    def backward(ctx, gradient):
        return _AllToAll.forward(ctx, gradient, ctx.axis, ctx.join, ctx.cut), None, None, None
