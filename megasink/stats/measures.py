"""The formulas of docs/sink-stats.md over per-token figures. Pure tensor functions, shared by live and post-hoc use.

B sequences, T positions, P position bins, X documents; leading dimensions (layers, heads) pass through.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)

EXACT_POSITIONS = 16
"""Positions below this have a bin of their own; later ones share log-spaced bins. "Early" is positions 1..15."""
INPUT_NORM_BINS = 84
_INPUT_NORM_LOWEST = -4.0  # log2
_INPUT_NORM_BINS_PER_OCTAVE = 4.0


def position_bins(length: int) -> tuple[list[int], list[int]]:
    """Half-open ranges (starts, ends) that cover positions 0..length-1; each later bin is about 1.25 times longer."""
    edges = list(range(min(EXACT_POSITIONS, length) + 1))
    while edges[-1] < length:
        edges.append(min(length, max(edges[-1] + 1, round(edges[-1] * 1.25))))
    return edges[:-1], edges[1:]


class Tokens:
    """Where each token of one micro-batch stands: its position in its document, and which document that is."""

    def __init__(self, batch: int, length: int, device: torch.device, first_token: Tensor | None = None):
        """`first_token` int64 [B, T]: index in its sequence of the first token of each token's document, where packed
        documents do not see each other (their number then moves to the host); without it each sequence is one
        document."""
        index = torch.arange(length, device=device).expand(batch, length)
        self.position = index if first_token is None else index - first_token
        """int64 [B, T]."""
        starts, _ = position_bins(length)
        edges = torch.tensor(starts, device=device)
        bins = torch.bucketize(self.position.flatten(), edges, right=True) - 1
        self.weights = torch.nn.functional.one_hot(bins, len(starts)).double().view(batch, length, -1)
        """[B, T, P]: 1 where the token is in the bin."""
        self.document: Tensor | None = None
        """int64 [B * T]: number of each token's document; None where each sequence is one."""
        if first_token is None:
            self.sequence = torch.arange(batch, device=device)
            self.size = torch.full((batch,), length, device=device)
        else:
            is_first = (self.position == 0).flatten()
            self.document = is_first.cumsum(0) - 1
            first = is_first.nonzero().squeeze(-1)
            self.sequence = first // length
            """int64 [X]: the sequence each document lies in."""
            self.size = torch.diff(first, append=first.new_tensor([batch * length]))
            """int64 [X]: tokens of each document."""
        self.start = self.size.cumsum(0) - self.size
        """int64 [X]: index of each document's first token in the flattened [B * T]."""

    def of_several(self, per_document: Tensor) -> Tensor:
        """[..., X] -> the documents of at least two tokens, those that ratios exist for."""
        return per_document if self.document is None else per_document[..., self.size > 1]

    def bin_sums(self, per_token: Tensor) -> Tensor:
        """[..., B, T] -> float64 [..., P]: sums over the tokens of each position bin."""
        # sequence by sequence: one long product would keep few of a device's cores busy
        rows = per_token.double().reshape(-1, *per_token.shape[-2:]).transpose(0, 1)
        return (rows @ self.weights).sum(dim=0).view(*per_token.shape[:-2], -1)

    def bin_counts(self) -> Tensor:
        """Tokens in each position bin, float64 [P]."""
        return self.weights.sum(dim=(0, 1))

    def first(self, per_token: Tensor) -> Tensor:
        """[..., B, T] -> float64 [..., X]: the figure at each document's first token."""
        return per_token.flatten(-2)[..., self.start].double()

    def document_sums(self, per_token: Tensor) -> Tensor:
        """[..., B, T] -> float64 [..., X]."""
        if self.document is None:
            return per_token.double().sum(dim=-1)
        sums = torch.zeros(*per_token.shape[:-2], len(self.size), dtype=torch.float64, device=per_token.device)
        return sums.index_add(-1, self.document, per_token.double().flatten(-2))

    def document_maxima(self, per_token: Tensor) -> tuple[Tensor, Tensor]:
        """[..., B, T] -> each document's largest figure, float64 [..., X], and its (first) position, int64 [..., X]."""
        if self.document is None:
            largest, position = per_token.max(dim=-1)
            return largest.double(), position
        flat = per_token.flatten(-2)
        index = self.document.expand(flat.shape)
        largest = flat.new_full((*flat.shape[:-1], len(self.size)), -torch.inf).scatter_reduce(-1, index, flat, "amax")
        elsewhere = flat != largest.gather(-1, index)
        position = self.position.flatten().masked_fill(elsewhere, self.position.numel())
        lowest = position.new_full(largest.shape, self.position.numel()).scatter_reduce(-1, index, position, "amin")
        return largest.double(), lowest


def gradient_sink_ratio(norms: Tensor, tokens: Tokens) -> Tensor:
    """R_GS(0) of |g2| [..., B, T]: at position 0 over the mean of the document's other tokens, [..., X].

    NaN or infinite for a document of one token, as for the other ratios here.
    """
    return _over_others(tokens.first(norms), norms, tokens)


def strongest_gradient_sink(norms: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """R_GS at the token with the document's largest |g2|, and that token's position, both [..., X]."""
    largest, position = tokens.document_maxima(norms)
    return _over_others(largest, norms, tokens), position


def first_over_others(norms: Tensor, tokens: Tokens) -> Tensor:
    """Value drain of |v| [..., B, T]: |v_0| over the mean of the document's other tokens, [..., X]."""
    return _over_others(tokens.first(norms), norms, tokens)


def first_over_early(norms: Tensor, tokens: Tokens) -> Tensor:
    """The norm at position 0 over its mean at positions 1..15 (of |g2|: R_GS against those), [..., X]."""
    early = (tokens.position > 0) & (tokens.position < EXACT_POSITIONS)
    mean = tokens.document_sums(norms * early) / (tokens.size - 1).clamp(max=EXACT_POSITIONS - 1)
    return tokens.first(norms) / mean


def ratios_of_means(arrays: dict[str, Array]) -> dict[str, Array]:
    """The ratios of means that follow from a report's means, by name; the same ratios as means of ratios lack the
    suffix `_of_means`."""
    ratios = {}
    count = arrays["position_count"][1:EXACT_POSITIONS]
    for name in ("hidden", "mlp_out"):
        norms = arrays[f"{name}_norm"]
        early = (norms[:, 1:EXACT_POSITIONS] * count).sum(-1) / count.sum()
        ratios[f"{name}_t0_over_early_of_means"] = norms[:, 0] / early
    for name in ("value", "value_hat"):
        if f"{name}_norm_others" in arrays:
            ratios[f"{name}_drain_of_means"] = arrays[f"{name}_norm"][..., 0] / arrays[f"{name}_norm_others"]
    return ratios


def kurtosis(moments: Tensor, count: float) -> tuple[Tensor, Tensor]:
    """Power sums [..., 4] of `count` elements -> fourth moment over squared second, central and raw, [...]."""
    m1, m2, m3, m4 = (moments / count).unbind(dim=-1)
    variance = m2 - m1.square()
    central = m4 - 4 * m1 * m3 + 6 * m1.square() * m2 - 3 * m1.pow(4)
    return central / variance.square(), m4 / m2.square()


def input_norm_edges() -> Tensor:
    """Edges of the bins over an input's norm, float64 [INPUT_NORM_BINS + 1]; the outer bins take what is beyond."""
    index = torch.arange(INPUT_NORM_BINS + 1, dtype=torch.float64)
    return torch.exp2(_INPUT_NORM_LOWEST + index / _INPUT_NORM_BINS_PER_OCTAVE)


def input_norm_sums(values: Tensor, norms: Tensor) -> Tensor:
    """Sums of each layer's values by the bin of the norm: both [L, ...] -> float64 [L, INPUT_NORM_BINS].

    A norm that is NaN counts in the lowest bin: as an index it would end the run, which skips such a step.
    """
    bins = ((norms.double().log2() - _INPUT_NORM_LOWEST) * _INPUT_NORM_BINS_PER_OCTAVE).floor()
    bins = bins.nan_to_num(nan=0.0).clamp(0, INPUT_NORM_BINS - 1).long().flatten(1)
    sums = torch.zeros(len(values), INPUT_NORM_BINS, dtype=torch.float64, device=values.device)
    return sums.scatter_add(1, bins, values.double().flatten(1))


def _over_others(figure: Tensor, norms: Tensor, tokens: Tokens) -> Tensor:
    return figure / ((tokens.document_sums(norms) - figure) / (tokens.size - 1))
