"""Massive activations of a block: moments and order statistics of the elements of one sequence's hidden states."""

import torch
from torch import Tensor

from megasink.model.taps import widen
from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import Axis

MASSIVE_ABSOLUTE, MASSIVE_RELATIVE = 100.0, 1000.0
"""A massive activation is above both: |a| > 100 and |a| > 1000 x the sequence's median (Sun et al., 2402.17762)."""

HISTOGRAM_BINS = 4096
_LOWEST, _HIGHEST = -40.0, 24.0
"""Range of log2 |a| of the histogram: bins of 1/64 octave, so a median is known to 0.55 %."""


@torch.no_grad()
def activation_moments(hidden_states: Tensor) -> Tensor:
    """Sums of a, a^2, a^3, a^4 over [B, T, H] -> float64 [B, 4]; they add up over ranks and micro-batches.

    A token's elements are summed in fp32 (float64 for float64), tokens in float64.
    """
    wide = widen(hidden_states)
    square = wide.square()
    powers = (wide, square, square * wide, square.square())
    return torch.stack([_sum_by_sequence(power) for power in powers], dim=-1)


def _sum_by_sequence(elements: Tensor) -> Tensor:
    """[B, T, H] -> [B]; of fp32, float64. Not in one step: with as many sequences as columns torch 2.11 takes that for
    a sum over tokens, fuses it with the norms, and fails on any type but fp32."""
    per_token = elements.sum(dim=2)
    return per_token.sum(dim=1, dtype=torch.float64 if per_token.is_floating_point() else None)


@torch.no_grad()
def activation_order(hidden_states: Tensor, shared: Axis) -> Tensor:
    """[B, T, H] -> [B, 3]: max |a|, median |a|, number of massive activations.

    `shared` is the axis whose ranks hold different tokens of the same sequences (of size 1 if none). The median is that
    of all their tokens; maximum and number are those of this rank's.
    """
    magnitude = widen(hidden_states).abs()
    median = histogram_median(all_reduce(magnitude_histogram(magnitude), shared))
    threshold = (MASSIVE_RELATIVE * median).clamp(min=MASSIVE_ABSOLUTE)
    massive = _sum_by_sequence(magnitude > threshold[:, None, None])
    order = (magnitude.amax(dim=(1, 2)), median, massive)
    return torch.stack([figure.to(magnitude.dtype) for figure in order], dim=-1)


def magnitude_histogram(magnitude: Tensor) -> Tensor:
    """How many |a| of each sequence fall into each bin of log2 |a|: [B, T, H] -> [B, HISTOGRAM_BINS]; bins add up."""
    half_bin = (_HIGHEST - _LOWEST) / HISTOGRAM_BINS / 2
    return _histogram_by_row(magnitude.log2().clamp(_LOWEST, _HIGHEST - half_bin).flatten(1))


# One operator: unrolled, a thousand short sequences were a thousand nodes, and a minute of compiling.
@torch.library.custom_op("megasink::histogram_by_row", mutates_args=(), schema="(Tensor octaves) -> Tensor")
def _histogram_by_row(octaves):
    return torch.stack([torch.histc(row, HISTOGRAM_BINS, _LOWEST, _HIGHEST) for row in octaves])


@_histogram_by_row.register_fake
def _(octaves):
    return octaves.new_empty(len(octaves), HISTOGRAM_BINS)


def histogram_median(histogram: Tensor) -> Tensor:
    """[B, HISTOGRAM_BINS] -> float64 [B]: mean of the (geometric) centres of the bins of the two middle elements."""
    below = histogram.double().cumsum(dim=-1)
    total = below[:, -1:]
    ranks = torch.cat((((total - 1) / 2).floor(), (total / 2).floor()), dim=-1)
    bins = torch.searchsorted(below, ranks, right=True).double()
    width = (_HIGHEST - _LOWEST) / HISTOGRAM_BINS
    return torch.exp2(_LOWEST + (bins + 0.5) * width).mean(dim=-1)
