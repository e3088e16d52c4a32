"""Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from megasink.config import ModelConfig


def rotary_tables(config: ModelConfig, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each [T, D], in `dtype`; the angles are computed in float64."""
    scaling = None
    if config.rotary_scaling_factor is not None:
        scaling = (
            config.rotary_scaling_factor,
            config.rotary_scaling_low_freq_factor,
            config.rotary_scaling_high_freq_factor,
            config.rotary_scaling_original_length,
        )
    return _tables(length, config.kv_channels, config.rotary_base, scaling, device, dtype)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, T, heads, D] by the angles of each position; cos and sin [T, D] or [B, T, D] in fp32 at least."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = states.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (states * cos + rotated * sin).to(states.dtype)


@lru_cache(maxsize=8)
def _tables(
    length: int,
    head_dim: int,
    base: float,
    scaling: tuple[float, float, float, int] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    frequencies = base**-exponents
    if scaling is not None:
        frequencies = _scale_as_llama3(frequencies, *scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _scale_as_llama3(frequencies: Tensor, factor: float, low: float, high: float, original_length: int) -> Tensor:
    """Llama 3.1's scaling: waves longer than original_length / low are stretched by `factor`, those shorter than
    original_length / high stay, between them a linear blend (Hugging Face rope_type "llama3")."""
    waves_in_context = original_length * frequencies / (2.0 * math.pi)
    kept = ((waves_in_context - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / factor
