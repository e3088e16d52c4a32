"""Packed documents: where each begins, and causal attention that stays inside its document.

Boundaries are `document_ids`, integers [B, T] that never decrease along T; tokens of one document share one id. No
T x T mask is made: on a GPU flex attention skips the blocks between documents, on a CPU (where torch trains neither
flex nor variable-length attention) each document is attended by itself.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention


class Boundaries(NamedTuple):
    """What attention needs to know of one micro-batch's documents: ranges on a CPU, block mask on a GPU."""

    first_token: Tensor
    """int64 [B, T]: position of the first token of each token's document."""
    ranges: tuple[tuple[tuple[int, int], ...], ...] | None
    """Half-open token ranges of the documents of each sequence."""
    block_mask: BlockMask | None


@lru_cache(maxsize=4)  # by the tensor's identity: made once per micro-batch, not once per block
def find_boundaries(document_ids: Tensor) -> Boundaries:
    """Of document ids [B, T]."""
    first_token = first_tokens(document_ids)
    if not document_ids.is_cuda:
        starts = [torch.unique_consecutive(row).tolist() for row in first_token]
        length = document_ids.shape[1]
        ranges = tuple(tuple(zip(row, [*row[1:], length], strict=True)) for row in starts)
        return Boundaries(first_token, ranges, None)
    batch, length = document_ids.shape
    block_mask = _compiled_create_block_mask()(
        same_document(document_ids), batch, None, length, length, device=document_ids.device
    )
    return Boundaries(first_token, None, block_mask)


def first_tokens(document_ids: Tensor) -> Tensor:
    """int64 [B, T]: position of the first token of each token's document."""
    positions = torch.arange(document_ids.shape[1], device=document_ids.device).expand(document_ids.shape)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.where(begins, positions, 0).cummax(dim=1).values


def positions_in_document(document_ids: Tensor) -> Tensor:
    """int64 [B, T]: 0 at each document's first token."""
    return torch.arange(document_ids.shape[1], device=document_ids.device) - first_tokens(document_ids)


def same_document(document_ids: Tensor):
    """Flex attention's mask function: causal, inside one document."""

    def mask(batch, head, query, key):
        return (query >= key) & (document_ids[batch, query] == document_ids[batch, key])

    return mask


def document_attention(query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries) -> tuple[Tensor, Tensor]:
    """Causal attention within documents and the log-sum-exp of its scores; shapes as in `causal_attention`."""
    if boundaries.ranges is None:
        return flex_document_attention(_compiled_flex_attention(), query, key, value, boundaries.block_mask)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    sequences = []
    for at, ranges in enumerate(boundaries.ranges):
        q, k, v = (states[at : at + 1] for states in (query, key, value))
        parts = [attend(q[:, :, begin:end], k[:, :, begin:end], v[:, :, begin:end], 0.0, True) for begin, end in ranges]
        sequences.append([torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True)])
    context, log_sum_exp = (torch.cat(pieces) for pieces in zip(*sequences, strict=True))
    return context, log_sum_exp


def flex_document_attention(
    attend, query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask
) -> tuple[Tensor, Tensor]:
    """`attend` is flex_attention, compiled for training (uncompiled it multiplies whole matrices)."""
    context, auxiliary = attend(query, key, value, block_mask=block_mask, return_aux=AuxRequest(lse=True))
    return context, auxiliary.lse.detach()


@lru_cache(maxsize=1)  # once: torch keeps something of each call of compile for ever
def _compiled_create_block_mask():
    return torch.compile(create_block_mask)  # fused: eager, it would build the dense mask it replaces


@lru_cache(maxsize=1)
def _compiled_flex_attention():
    return torch.compile(flex_attention)
