"""Causal self-attention with grouped key-value heads, RoPE and V-scale, split over heads."""

import math

import torch
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model.documents import Boundaries, document_attention
from megasink.model.rope import apply_rotary
from megasink.model.taps import BlockTaps, sum_of_squares, tap_gradient, tap_shared_gradient, tap_value
from megasink.model.v_scale import VScale
from megasink.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    enter_tensor_parallel,
    fused_column_parallel,
)
from megasink.parallel.layout import ParallelLayout


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v_hat over the heads of this rank; parameter names are Hugging Face's.

    With fewer key-value heads than tensor-parallel ranks every rank holds them all and uses the one its queries need.
    """

    def __init__(self, config: ModelConfig, layout: ParallelLayout):
        super().__init__()
        self.layout = layout
        self.head_dim = config.kv_channels
        ranks, groups = layout.tensor.size, config.num_key_value_heads
        self.num_heads = config.num_attention_heads // ranks
        self.num_key_value_heads = max(1, groups // ranks)
        # replicated: this rank's heads among all of them
        first = layout.tensor.rank * groups // ranks
        self.key_value_heads = slice(first, first + 1) if groups < ranks else None

        hidden, width = config.hidden_size, self.head_dim
        rows = slice(first * width, (first + 1) * width) if groups < ranks else None
        self.q_proj = ColumnParallelLinear(hidden, config.num_attention_heads * width, layout)
        self.k_proj = ColumnParallelLinear(hidden, groups * width, layout, rows)
        self.v_proj = ColumnParallelLinear(hidden, groups * width, layout, rows)
        self.o_proj = RowParallelLinear(config.num_attention_heads * width, hidden, layout)
        self.v_scale = None
        if config.v_scale != "off":
            initial_c = hidden * width * config.init_method_std**2
            self.v_scale = VScale(config.v_scale, groups, initial_c, layout.tensor, self.key_value_heads)

    def forward(
        self, hidden_states: Tensor, cos: Tensor, sin: Tensor, boundaries: Boundaries | None, taps: BlockTaps | None
    ) -> Tensor:
        """hidden_states [B, T (or its local share), H] -> the same shape; cos, sin [T, D] or [B, T, D]."""
        hidden_states = enter_tensor_parallel(hidden_states, self.layout)
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim))
            for states in fused_column_parallel(hidden_states, [self.q_proj, self.k_proj, self.v_proj])
        )
        if taps is not None:
            value = self._tap_value_gradient(value, taps.value_grad)
            value = tap_value(value, taps.value, sum_of_squares(value))
        if self.v_scale is not None:
            value = self.v_scale(value)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        repeats = self.num_heads // self.num_key_value_heads
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        if boundaries is None:
            context, log_sum_exp = causal_attention(query, key, value)
        else:
            context, log_sum_exp = document_attention(query, key, value, boundaries)
        if taps is not None:
            first_token = None if boundaries is None else boundaries.first_token
            sink = attention_to_first(query, key, log_sum_exp, first_token)
            context = tap_value(context, taps.attention_sink, sink)
        return self.o_proj(context.transpose(1, 2).flatten(2))

    def _tap_value_gradient(self, value: Tensor, leaf: Tensor) -> Tensor:
        if self.key_value_heads is None:
            return tap_gradient(value, leaf)
        head, count = self.key_value_heads.start, self.k_proj.weight.shape[0] // self.head_dim
        return tap_shared_gradient(value, leaf, self.layout.tensor, head, count)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention and the log-sum-exp of its scores, from the fused kernel that training uses.

    Args:
        query, key, value: [B, heads, T, D].

    Returns:
        [B, heads, T, D], and fp32 (float64 for float64) [B, heads, T] without gradient.
    """
    if not query.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
    if query.dtype in (torch.bfloat16, torch.float16):
        context, log_sum_exp = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, True
        )[:2]
        return context, log_sum_exp.reshape(query.shape[:-1])
    context, log_sum_exp = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, True
    )[:2]
    return context, log_sum_exp[..., : query.shape[-2]]


def attention_to_first(query: Tensor, key: Tensor, log_sum_exp: Tensor, first_token: Tensor | None = None) -> Tensor:
    """AS per sequence and head, [B, heads]: mean over queries i > 0 of A_{i,0} = exp(q_i.k_0 / sqrt(D) - lse_i).

    With `first_token` int64 [B, T], key 0 is the first token of the query's document, and the mean is over all queries
    but those first tokens.
    """
    wide = log_sum_exp.dtype
    query, key = query.detach(), key.detach()
    if first_token is None:
        scores = (query @ key[:, :, :1].transpose(-1, -2)).squeeze(-1).to(wide)
        return (scores / math.sqrt(query.shape[-1]) - log_sum_exp)[..., 1:].exp().mean(dim=-1)
    index = first_token[:, None, :, None].expand_as(key)
    scores = (query * key.gather(2, index)).sum(dim=-1).to(wide)
    counts = (first_token != torch.arange(first_token.shape[1], device=key.device))[:, None]
    attention = (scores / math.sqrt(query.shape[-1]) - log_sum_exp).exp()
    return (attention * counts).sum(dim=-1) / counts.sum(dim=-1)
