"""Figures that one report for a whole run's steps cannot afford: exact order statistics, every key's attention."""

import math

import numpy as np
import torch
from torch import Tensor

from megasink.model.activation_statistics import MASSIVE_ABSOLUTE, MASSIVE_RELATIVE
from megasink.model.attention_patterns import GU_LENGTH
from megasink.model.taps import widen
from megasink.stats.measures import Tokens

QUANTILES = (0.5, 0.99, 0.999)
ORDER_FIGURES = ("top1", "top2", "top3", "median", "q99", "q999", "massive_count", "top1_position", "top1_channel")
_ROWS = 128  # queries whose rows of attention are looked at together


@torch.no_grad()
def order_statistics(states: Tensor) -> Tensor:
    """[B, T, H] -> float64 [B, 9], ORDER_FIGURES of each sequence's elements: the three largest |a|, exact quantiles,
    massive activations (Sun et al., 2402.17762: |a| > 100 and > 1000 x the median), where the largest one is."""
    magnitude = widen(states).abs().flatten(1)
    # on a CPU numpy sorts several times as fast as torch
    ordered = (
        magnitude.sort(dim=1).values if magnitude.is_cuda else torch.from_numpy(np.sort(magnitude.numpy(), axis=1))
    )
    quantiles = torch.stack([_quantile(ordered, share) for share in QUANTILES], dim=1)
    top = ordered[:, -3:].flip(1).double()
    top = torch.nn.functional.pad(top, (0, 3 - top.shape[1]), value=math.nan)
    threshold = (MASSIVE_RELATIVE * quantiles[:, :1]).clamp(min=MASSIVE_ABSOLUTE)
    massive = (magnitude > threshold).sum(dim=1)  # compared in float64
    where = magnitude.argmax(dim=1)
    place = torch.stack((massive, where // states.shape[2], where % states.shape[2]), dim=1).double()
    return torch.cat((top, quantiles, place), dim=1)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Linear between the two elements around it, as numpy's default: [B, n] -> float64 [B]."""
    at = share * (ordered.shape[1] - 1)
    low, high = ordered[:, math.floor(at)].double(), ordered[:, math.ceil(at)].double()
    return low + (at - math.floor(at)) * (high - low)


@torch.no_grad()
def attention_received(query: Tensor, key: Tensor, lse: Tensor, tokens: Tokens, first_token: Tensor | None) -> Tensor:
    """[B, N, T]: mean over the later queries i > k of its document of A_{i,k}; 0 for a document's last token.

    Walks over the queries in groups; no T x T matrix exists. Arguments as attention_patterns has them.
    """
    index = torch.arange(query.shape[2], device=query.device)
    keys, total = widen(key), torch.zeros_like(lse)
    for start in range(0, query.shape[2], _ROWS):
        rows = slice(start, min(start + _ROWS, query.shape[2]))
        logits = widen(query[:, :, rows]) @ keys[:, :, : rows.stop].transpose(-1, -2)
        hidden = index[: rows.stop] >= index[rows, None]
        if first_token is not None:
            hidden = hidden | (index[: rows.stop] < first_token[:, None, rows, None])
        logits.div_(math.sqrt(query.shape[-1])).sub_(lse[:, :, rows, None])  # in place: this is all memory traffic
        attention = logits.masked_fill_(hidden, -math.inf).exp_()
        total[:, :, : rows.stop] += attention.sum(dim=-2)
    return total / later_queries(tokens, query.shape[0]).clamp(min=1)[:, None]


def later_queries(tokens: Tokens, batch: int) -> Tensor:
    """int64 [B, T]: queries of the same document behind each token."""
    length = tokens.position.shape[1]
    if tokens.document is None:
        return (length - 1 - tokens.position).expand(batch, length)
    return tokens.size[tokens.document].view(batch, length) - 1 - tokens.position


@torch.no_grad()
def gu_alphas(query: Tensor, key: Tensor, tokens: Tokens) -> Tensor:
    """[X, N, G]: Gu et al.'s alpha_k (2410.10781), k = 0..G-1, of every document of at least G = min(64, T) tokens,
    from the explicit attention of its first G: alpha_k = sum_{i >= k} A_{i,k} / (G - k)."""
    length = min(GU_LENGTH, query.shape[2])
    starts = tokens.start if tokens.document is None else tokens.start[tokens.size >= length]
    rows = starts[:, None] + torch.arange(length, device=query.device)
    q, k = (widen(states).transpose(1, 2).flatten(0, 1)[rows].transpose(1, 2) for states in (query, key))
    logits = q @ k.transpose(-1, -2) / math.sqrt(query.shape[-1])
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    attention = logits.masked_fill(future, -math.inf).softmax(dim=-1)
    return attention.sum(dim=-2) / torch.arange(length, 0, -1, device=query.device)


def at_position(per_token: Tensor, tokens: Tokens, place: Tensor) -> Tensor:
    """[B, T] at position `place` int64 [X] of each document, float64 [X]; NaN where no query follows it."""
    there = place < tokens.size - 1
    index = tokens.start + torch.where(there, place, 0)
    return per_token.flatten()[index].double().masked_fill(~there, math.nan)


def over_others(per_token: Tensor, tokens: Tokens, place: Tensor) -> Tensor:
    """`at_position` over the mean of the document's other tokens, float64 [X]."""
    figure = at_position(per_token, tokens, place)
    return figure / ((tokens.document_sums(per_token) - figure) / (tokens.size - 1))
