"""Cross entropy of logits whose vocabulary is split over tensor-parallel ranks."""

from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import Axis

IGNORE_INDEX = -100


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, vocab_size: int, axis: Axis, compile: bool = False
) -> Tensor:
    """Per-token loss in fp32 (float64 for float64 logits); 0 where the label is -100.

    Args:
        logits: [B, T, padded vocabulary / ranks], this rank's columns.
        labels: int64 [B, T].
        vocab_size: columns of the whole vocabulary from this one on are padding and have no probability.
        compile: fuse each pass over the logits, so that they never stand in fp32 in memory.

    Returns:
        [B, T], the same on every rank of the axis.
    """
    return _CrossEntropy.apply(logits, labels, vocab_size, axis, compile)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, vocab_size, axis, compile):
        first_column = axis.rank * logits.shape[-1]
        ctx.columns = (first_column, vocab_size)
        ctx.local_gradient = _compiled(_local_gradient) if compile else _local_gradient
        local_scores = _compiled(_local_scores) if compile else _local_scores
        log_sum_exp, target = local_scores(logits, labels, *ctx.columns)
        if axis.size > 1:
            largest = all_reduce(log_sum_exp, axis, dist.ReduceOp.MAX)
            log_sum_exp = all_reduce((log_sum_exp - largest).exp(), axis).log() + largest
            target = all_reduce(target, axis)
        ctx.save_for_backward(logits, labels, log_sum_exp)
        return (log_sum_exp - target).masked_fill(labels == IGNORE_INDEX, 0.0)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.local_gradient(*ctx.saved_tensors, gradient, *ctx.columns), None, None, None, None


def _local_scores(logits: Tensor, labels: Tensor, first_column: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """log-sum-exp over this rank's columns, and the label's logit (0 where another rank holds it), both [B, T]."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    columns = torch.arange(first_column, first_column + logits.shape[-1], device=logits.device)
    log_sum_exp = scores.masked_fill(columns >= vocab_size, float("-inf")).logsumexp(dim=-1)
    local = labels - first_column
    here = (local >= 0) & (local < logits.shape[-1])
    target = scores.gather(-1, local.masked_fill(~here, 0).unsqueeze(-1)).squeeze(-1)
    return log_sum_exp, target.masked_fill(~here, 0.0)


def _local_gradient(
    logits: Tensor, labels: Tensor, log_sum_exp: Tensor, gradient: Tensor, first_column: int, vocab_size: int
) -> Tensor:
    """(softmax - one hot) * gradient, over this rank's columns."""
    columns = torch.arange(first_column, first_column + logits.shape[-1], device=logits.device)
    probabilities = (
        (logits.to(log_sum_exp.dtype) - log_sum_exp.unsqueeze(-1)).exp().masked_fill(columns >= vocab_size, 0.0)
    )
    weight = gradient.masked_fill(labels == IGNORE_INDEX, 0.0).unsqueeze(-1)
    return ((probabilities - (columns == labels.unsqueeze(-1)).to(probabilities.dtype)) * weight).to(logits.dtype)


@cache
def _compiled(function: Callable) -> Callable:
    """Wrapped when it is first run: torch.compile imports the compiler, seconds that most commands need not spend."""
    return torch.compile(function)
