"""Cross entropy of logits whose vocabulary is split over tensor-parallel ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import Axis

IGNORE_INDEX = -100


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int, axis: Axis) -> Tensor:
    """Per-token loss in fp32 (float64 for float64 logits); 0 where the label is -100.

    Args:
        logits: [B, T, padded vocabulary / ranks], this rank's columns.
        labels: int64 [B, T].
        vocab_size: columns of the whole vocabulary from this one on are padding and have no probability.

    Returns:
        [B, T], the same on every rank of the axis.
    """
    return _CrossEntropy.apply(logits, labels, vocab_size, axis)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, vocab_size, axis):
        width = logits.shape[-1]
        first = axis.rank * width
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        padding = torch.arange(first, first + width, device=logits.device) >= vocab_size
        scores = scores.masked_fill(padding, float("-inf"))
        largest = all_reduce(scores.amax(dim=-1), axis, dist.ReduceOp.MAX)
        exponentials = (scores - largest.unsqueeze(-1)).exp()
        total = all_reduce(exponentials.sum(dim=-1), axis)

        valid = labels != IGNORE_INDEX
        local = labels - first
        here = valid & (local >= 0) & (local < width)
        index = local.masked_fill(~here, 0).unsqueeze(-1)
        target = scores.gather(-1, index).squeeze(-1).masked_fill(~here, 0.0)
        target = all_reduce(target, axis)

        probabilities = exponentials.div_(total.unsqueeze(-1)).to(logits.dtype)
        ctx.save_for_backward(probabilities, index, here, valid)
        return (total.log() + largest - target).masked_fill(~valid, 0.0)

    @staticmethod
    def backward(ctx, gradient):
        probabilities, index, here, valid = ctx.saved_tensors
        weight = gradient.masked_fill(~valid, 0.0).unsqueeze(-1)
        logits_gradient = probabilities * weight.to(probabilities.dtype)
        at_target = -weight.to(probabilities.dtype) * here.unsqueeze(-1)
        return logits_gradient.scatter_add_(-1, index, at_target), None, None, None
