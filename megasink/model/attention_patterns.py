"""What attention looks at, from queries, keys and the log-sum-exp of the fused kernel; no T x T matrix is kept.

B sequences, N heads, T positions, D head width; keys and values are repeated to the query heads. A_{i,c} =
exp(q_i.k_c / sqrt(D) - lse_i), the logits computed in fp32 at least. "Key 0" is the first token of
the query's document; where packed documents do not see each other, `first_token` int64 [B, T] says which that is.
Nothing here has a gradient.
"""

import math

import torch
from torch import Tensor

from megasink.model.taps import widen

GU_LENGTH = 64
"""Gu et al.'s T: alpha_k is taken over the first 64 tokens (all of them where there are fewer)."""
GU_KEYS = 16
"""alpha_k is taken for keys 0..15."""
GU_EPSILON = 0.3
"""A sink is an alpha_k above this."""
HEAD_PATTERNS = 3 + 2 * GU_KEYS
"""Figures per head that `head_patterns` returns."""
_ROWS = 128
"""Queries whose rows of logits are looked at together: memory is B x N x _ROWS x T."""


@torch.no_grad()
def attention_to_position(
    query: Tensor, key: Tensor, lse: Tensor, place: int, first_token: Tensor | None = None
) -> Tensor:
    """[B, N, T]: each query's attention to the token at position `place` of its document; 0 where that comes later.

    Args:
        query, key: [B, N, T, D].
        lse: [B, N, T], log-sum-exp of each query's logits.
    """
    index = torch.arange(query.shape[2], device=query.device)
    if first_token is None:
        target = key[:, :, place : place + 1]
        visible = index >= place
    else:
        wanted = first_token + place
        visible = (wanted <= index)[:, None]
        target = _take(key, wanted.clamp(max=query.shape[2] - 1))
    logits = (widen(query) * widen(target)).sum(dim=-1) / math.sqrt(query.shape[-1])
    return (logits - lse).exp() * visible


@torch.no_grad()
def attention_sink(query: Tensor, key: Tensor, lse: Tensor, first_token: Tensor | None = None) -> Tensor:
    """[B, N]: sum of A_{i,0} over the queries i > 0."""
    return (attention_to_position(query, key, lse, 0, first_token) * _after_first(query, first_token)).sum(dim=-1)


@torch.no_grad()
def head_patterns(
    query: Tensor, key: Tensor, value_hat: Tensor, lse: Tensor, first_token: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Figures per head [B, N, HEAD_PATTERNS], and the entropy of each row [B, T, N] in nats.

    Of each head: sum over queries i > 0 of A_{i,0} |v_hat_0|; number of queries i > 0 whose largest attention is on key
    0; largest logit; then, for k in 0..15, the sum of alpha_k over the sequence's documents of at least T = 64 tokens
    and the number of them with alpha_k > 0.3 (Gu et al., 2410.10781: alpha_k = sum_{i>=k} A_{i,k} / (T - k)).
    """
    return _head_patterns(query, key, value_hat, lse, first_token)


# One operator, so that neither the compiler unrolls it nor selective recomputation keeps the logits inside.
@torch.library.custom_op(
    "megasink::head_patterns",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value_hat, Tensor lse, Tensor? first_token) -> (Tensor, Tensor)",
)
def _head_patterns(query, key, value_hat, lse, first_token):
    later = _after_first(query, first_token)
    to_first = attention_to_position(query, key, lse, 0, first_token)
    value_norm = widen(value_hat).square().sum(dim=-1).sqrt()
    if first_token is None:
        first_value_norm = value_norm[..., :1]
    else:
        first_value_norm = value_norm.gather(-1, _per_head(first_token, query))
    entropy, largest, on_first = row_statistics(query, key, lse, first_token)
    alpha_sum, alpha_count = gu_alpha(query, key, lse, first_token)
    figures = [
        (to_first * first_value_norm * later).sum(dim=-1),
        (on_first * later).sum(dim=-1).to(lse.dtype),
        largest.amax(dim=-1),
    ]
    figures = torch.cat((torch.stack(figures, dim=-1), alpha_sum, alpha_count), dim=-1)
    return figures, entropy.transpose(1, 2).contiguous()


@_head_patterns.register_fake
def _(query, key, value_hat, lse, first_token):
    batch, heads, length, _ = query.shape
    return lse.new_empty(batch, heads, HEAD_PATTERNS), lse.new_empty(batch, length, heads)


@torch.no_grad()
def row_statistics(
    query: Tensor, key: Tensor, lse: Tensor, first_token: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query [B, N, T]: entropy of its row (nats), its largest logit, whether its largest attention is on key 0.

    Walks over the queries in groups; the logits of one group at a time exist.
    """
    queries, keys = widen(query) / math.sqrt(query.shape[-1]), widen(key)
    index = torch.arange(query.shape[2], device=query.device)
    parts = []
    for start in range(0, query.shape[2], _ROWS):
        rows = slice(start, min(start + _ROWS, query.shape[2]))
        # changed in place: each pass over the logits costs as much as another
        logits = queries[:, :, rows] @ keys[:, :, : rows.stop].transpose(-1, -2)
        if first_token is None:
            to_first = logits[..., 0].clone()
        else:
            first = first_token[:, None, rows]
            to_first = logits.gather(-1, first[..., None].expand(*logits.shape[:-1], 1)).squeeze(-1)
            logits.masked_fill_(index[: rows.stop] < first[..., None], -math.inf)
        logits[..., start:].masked_fill_(index[rows] > index[rows, None], -math.inf)
        largest = logits.amax(dim=-1)
        entropy = torch.special.entr(logits.sub_(lse[:, :, rows, None]).exp_()).sum(dim=-1)
        parts.append((entropy, largest, to_first >= largest))
    return tuple(torch.cat(column, dim=-1) for column in zip(*parts, strict=True))


@torch.no_grad()
def gu_alpha(query: Tensor, key: Tensor, lse: Tensor, first_token: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[B, N, 16] twice: sum of alpha_k over documents of at least GU_LENGTH tokens, and number of those above 0.3."""
    length = min(GU_LENGTH, query.shape[2])
    if first_token is None:
        query, lse = query[:, :, :length], lse[:, :, :length]
        complete = within = torch.ones((), dtype=torch.bool, device=query.device)
    else:
        position = torch.arange(query.shape[2], device=query.device) - first_token
        size = torch.zeros_like(first_token).scatter_add(-1, first_token, torch.ones_like(first_token))
        complete = (size >= length)[:, None]  # the size stands at the document's first token
        within = (position < length)[:, None]
    sums, counts = [], []
    for place in range(GU_KEYS):
        if place >= length:
            sums.append(torch.zeros_like(sums[0]))
            counts.append(torch.zeros_like(counts[0]))
            continue
        attention = attention_to_position(query, key, lse, place, first_token) * within
        alpha = _document_sums(attention, first_token) / (length - place) * complete
        sums.append(alpha.sum(dim=-1))
        counts.append((alpha > GU_EPSILON).sum(dim=-1).to(lse.dtype))
    return torch.stack(sums, dim=-1), torch.stack(counts, dim=-1)


def _after_first(query: Tensor, first_token: Tensor | None) -> Tensor:
    """[T] or [B, 1, T]: true where a query is not the first of its document."""
    index = torch.arange(query.shape[2], device=query.device)
    return index > 0 if first_token is None else (index > first_token)[:, None]


def _document_sums(per_query: Tensor, first_token: Tensor | None) -> Tensor:
    """[B, N, T] -> [B, N, 1], or [B, N, T] with each document's sum at its first token and 0 elsewhere."""
    if first_token is None:
        return per_query.sum(dim=-1, keepdim=True)
    return torch.zeros_like(per_query).scatter_add(-1, _per_head(first_token, per_query), per_query)


def _take(states: Tensor, index: Tensor) -> Tensor:
    """states [B, N, T, D] at positions `index` [B, T]."""
    return states.gather(2, index[:, None, :, None].expand(states.shape))


def _per_head(index: Tensor, like: Tensor) -> Tensor:
    return index[:, None].expand(-1, like.shape[1], -1)
