"""Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def rotary_tables(
    length: int, head_dim: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each [T, D], in `dtype`; the angles are computed in float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), base**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, T, heads, D] by the angles of each position; cos and sin [T, D] in fp32 at least."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = states.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (states * cos + rotated * sin).to(states.dtype)
