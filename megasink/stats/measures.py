"""The formulas of paper.md section 2 over per-token norms. Pure tensor functions, shared by live and post-hoc use.

B sequences, T positions; leading dimensions (layers, heads) pass through.
"""

import torch
from torch import Tensor

EXACT_POSITIONS = 16
"""Positions below this have a bin of their own; later ones share log-spaced bins."""


def position_bins(length: int) -> tuple[list[int], list[int]]:
    """Half-open ranges (starts, ends) that cover positions 0..length-1; each later bin is about 1.25 times longer."""
    edges = list(range(min(EXACT_POSITIONS, length) + 1))
    while edges[-1] < length:
        edges.append(min(length, max(edges[-1] + 1, round(edges[-1] * 1.25))))
    return edges[:-1], edges[1:]


def bin_sums(per_token: Tensor, starts: list[int]) -> Tensor:
    """[..., T] -> [..., P]: sums over the positions of each bin (`starts` from position_bins), in float64."""
    length = per_token.shape[-1]
    boundaries = torch.tensor(starts, device=per_token.device)
    index = torch.bucketize(torch.arange(length, device=per_token.device), boundaries, right=True) - 1
    sums = torch.zeros(*per_token.shape[:-1], len(starts), dtype=torch.float64, device=per_token.device)
    return sums.index_add_(-1, index, per_token.double())


def gradient_sink_ratio(gradient_norms: Tensor) -> Tensor:
    """R_GS(0): |g2 at 0| / mean over the other tokens of |g2|; [..., T] -> [...]."""
    return gradient_norms[..., 0] / gradient_norms[..., 1:].mean(dim=-1)


def first_over_early(norms: Tensor) -> Tensor:
    """The norm at token 0 over its mean at positions 1..15 (of |g2|: R_GS against 1..15); [..., T] -> [...]."""
    return norms[..., 0] / norms[..., 1:EXACT_POSITIONS].mean(dim=-1)
