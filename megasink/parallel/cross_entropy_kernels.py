"""Passes over the logits of a GPU, each of which reads them once; fp32 inside.

A compiler reads them twice for a log-sum-exp (largest, then sum) and writes their gradient at two thirds of the
memory's speed.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without; only CUDA tensors need it
    triton = None

_BLOCK = 4096


def usable(logits: Tensor) -> bool:
    """On this device and for this dtype."""
    return triton is not None and logits.is_cuda and logits.dtype != torch.float64


def scores(logits: Tensor, labels: Tensor, first_column: int, valid: int) -> tuple[Tensor, Tensor]:
    """log-sum-exp over a row's first `valid` columns and the label's logit, 0 where it is not among the columns.

    Args:
        logits: [..., columns], contiguous.
        labels: int64 [...], columns counted from `first_column` before the first one here.

    Returns:
        fp32 [...] each.
    """
    log_sum_exp, target = (torch.empty(labels.shape, device=logits.device) for _ in range(2))
    _cross_entropy_scores_kernel[(labels.numel(),)](
        logits, labels.contiguous(), log_sum_exp, target, logits.shape[-1], valid, first_column, _BLOCK, num_warps=8
    )
    return log_sum_exp, target


def gradient(
    logits: Tensor, labels: Tensor, log_sum_exp: Tensor, upstream: Tensor, first_column: int, valid: int
) -> Tensor:
    """(softmax - one hot) * upstream, as `logits`; softmax is 0 from column `valid` on. `upstream` fp32 [...]."""
    columns, found = logits.shape[-1], torch.empty_like(logits)
    _cross_entropy_gradient_kernel[(labels.numel(), triton.cdiv(columns, _BLOCK))](
        logits,
        labels.contiguous(),
        log_sum_exp,
        upstream.contiguous(),
        found,
        columns,
        valid,
        first_column,
        _BLOCK,
        num_warps=8,
    )
    return found


if triton is not None:

    @triton.jit
    def _cross_entropy_scores_kernel(
        logits, labels, log_sum_exp, target, columns, valid, first_column, block: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        logits += row * columns
        largest, total = float("-inf"), 0.0
        for start in range(0, valid, block):
            at = start + tl.arange(0, block)
            x = tl.load(logits + at, mask=at < valid, other=float("-inf")).to(tl.float32)
            above = tl.maximum(largest, tl.max(x, axis=0))
            total = total * tl.exp(largest - above) + tl.sum(tl.exp(x - above), axis=0)
            largest = above
        tl.store(log_sum_exp + row, largest + tl.log(total))
        place = tl.load(labels + row) - first_column
        here = (place >= 0) & (place < columns)
        tl.store(target + row, tl.load(logits + place, mask=here, other=0.0).to(tl.float32))

    @triton.jit
    def _cross_entropy_gradient_kernel(
        logits, labels, log_sum_exp, upstream, found, columns, valid, first_column, block: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * block + tl.arange(0, block)
        x = tl.load(logits + row * columns + at, mask=at < valid, other=float("-inf")).to(tl.float32)
        probability = tl.exp(x - tl.load(log_sum_exp + row))
        is_label = at == tl.load(labels + row) - first_column
        difference = tl.where(is_label, probability - 1.0, probability)
        tl.store(found + row * columns + at, difference * tl.load(upstream + row), mask=at < columns)
