"""Cross entropy of logits whose vocabulary is split over tensor-parallel ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.parallel import cross_entropy_kernels as kernels
from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import Axis

IGNORE_INDEX = -100


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, vocab_size: int, axis: Axis, fused: bool = False
) -> Tensor:
    """Per-token loss in fp32 (float64 for float64 logits); 0 where the label is -100.

    Args:
        logits: [B, T, padded vocabulary / ranks], this rank's columns.
        labels: int64 [B, T].
        vocab_size: columns of the whole vocabulary from this one on are padding and have no probability.
        fused: on a GPU, one kernel of ours for each pass over the logits, so that they never stand in fp32 in memory.

    Returns:
        [B, T], the same on every rank of the axis.
    """
    return _CrossEntropy.apply(logits, labels, vocab_size, axis, fused)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, vocab_size, axis, fused):
        columns = logits.shape[-1]
        first_column = axis.rank * columns
        ctx.columns = (first_column, min(max(vocab_size - first_column, 0), columns))
        ctx.fused = fused and kernels.usable(logits)
        scores = kernels.scores if ctx.fused else _scores
        log_sum_exp, target = scores(logits, labels, *ctx.columns)
        if axis.size > 1:
            largest = all_reduce(log_sum_exp, axis, dist.ReduceOp.MAX)
            log_sum_exp = all_reduce((log_sum_exp - largest).exp(), axis).log() + largest
            target = all_reduce(target, axis)
        ctx.save_for_backward(logits, labels, log_sum_exp)
        return (log_sum_exp - target).masked_fill(labels == IGNORE_INDEX, 0.0)

    @staticmethod
    def backward(ctx, upstream):
        logits, labels, log_sum_exp = ctx.saved_tensors
        upstream = upstream.masked_fill(labels == IGNORE_INDEX, 0.0)
        gradient = kernels.gradient if ctx.fused else _gradient
        return gradient(logits, labels, log_sum_exp, upstream, *ctx.columns), None, None, None, None


def _scores(logits: Tensor, labels: Tensor, first_column: int, valid: int) -> tuple[Tensor, Tensor]:
    """As kernels.scores, in the logits' precision where it is above fp32."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_sum_exp = scores[..., :valid].logsumexp(dim=-1)
    local = labels - first_column
    here = (local >= 0) & (local < logits.shape[-1])
    target = scores.gather(-1, local.masked_fill(~here, 0).unsqueeze(-1)).squeeze(-1)
    return log_sum_exp, target.masked_fill(~here, 0.0)


def _gradient(
    logits: Tensor, labels: Tensor, log_sum_exp: Tensor, upstream: Tensor, first_column: int, valid: int
) -> Tensor:
    """As kernels.gradient."""
    columns = torch.arange(logits.shape[-1], device=logits.device)
    probabilities = (logits.to(log_sum_exp.dtype) - log_sum_exp.unsqueeze(-1)).exp()
    probabilities = probabilities.masked_fill(columns >= valid, 0.0)
    is_label = columns == (labels - first_column).unsqueeze(-1)
    return ((probabilities - is_label.to(probabilities.dtype)) * upstream.unsqueeze(-1)).to(logits.dtype)
