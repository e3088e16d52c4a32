"""Causal self-attention with grouped key-value heads, RoPE and V-scale, split over heads."""

import torch
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model import rotary_v_scale
from megasink.model.attention_patterns import attention_sink, head_patterns
from megasink.model.documents import Boundaries, document_attention
from megasink.model.rope import apply_rotary
from megasink.model.taps import (
    BlockTaps,
    split_paths,
    sum_of_squares,
    tap_gradient,
    tap_shared_gradient,
    tap_value,
    widen,
)
from megasink.model.v_scale import VScale
from megasink.parallel.collectives import heads_to_tokens, tokens_to_heads
from megasink.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    enter_tensor_parallel,
    fused_column_parallel,
    joined_weight,
)
from megasink.parallel.layout import ParallelLayout


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v_hat over the heads of this rank; parameter names are Hugging Face's.

    With fewer key-value heads than tensor-parallel ranks every rank holds them all and uses the one its queries need.
    """

    fused = False
    """Whether one kernel may stand for RoPE and V-scale."""

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

    def joined_weight(self) -> Tensor | None:
        """Of the query, key and value projections."""
        return joined_weight([self.q_proj, self.k_proj, self.v_proj])

    def forward(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        boundaries: Boundaries | None,
        taps: BlockTaps | None,
        joined: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B, T (or its local share), H] -> the same shape; cos, sin [T, D] or [B, T, D]; `joined` is
        joined_weight()."""
        taps = taps or BlockTaps()
        query, key, value = self._gather_tokens(*self._heads(hidden_states, cos, sin, taps, joined))
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        if boundaries is None:
            context, log_sum_exp = causal_attention(query, key, value)
        else:
            context, log_sum_exp = document_attention(query, key, value, boundaries)
        first_token = None if boundaries is None else boundaries.first_token
        context = tap_attention(context, query, key, value, log_sum_exp, first_token, taps)
        context = heads_to_tokens(context.transpose(1, 2), self.layout.context)
        return self.o_proj(context.flatten(2))

    def _heads(
        self, hidden_states: Tensor, cos: Tensor, sin: Tensor, taps: BlockTaps, joined: Tensor | None
    ) -> tuple[Tensor, ...]:
        """[B, T (or its local share), H] -> query and key rotated, v_hat: [B, T, heads of this rank, D]."""
        if taps.attention_paths is None:
            projections = [self.q_proj, self.k_proj, self.v_proj]
            states = fused_column_parallel(enter_tensor_parallel(hidden_states, self.layout), projections, joined)
            states = states.unflatten(-1, (-1, self.head_dim))
            if self.fused and self._one_pass(states):
                return self._rotate_and_scale(states, cos, sin, taps)
            heads = [self.num_heads, self.num_key_value_heads, self.num_key_value_heads]
            query, key, value = states.split(heads, dim=-2)
        else:
            query, key, value = self._project_apart(hidden_states, taps.attention_paths)
        query = tap_gradient(query, taps.query_grad)
        key = self._tap_key_value(key, taps.key_grad)
        value = self._tap_key_value(value, taps.value_grad)
        value = tap_value(value, taps.value, sum_of_squares, value)
        if self.v_scale is not None:
            value = self.v_scale(value, taps.theta)
        value = self._tap_key_value(value, taps.value_hat_grad)
        value = tap_value(value, taps.value_hat, sum_of_squares, value)
        return apply_rotary(query, cos, sin), apply_rotary(key, cos, sin), value

    def _one_pass(self, query_key_value: Tensor) -> bool:
        """Whether one kernel can stand for RoPE and V-scale: not where ranks share heads, nor for backward-only."""
        learned = self.v_scale is None or self.v_scale.theta is not None
        return self.key_value_heads is None and learned and rotary_v_scale.usable(query_key_value)

    def _rotate_and_scale(
        self, query_key_value: Tensor, cos: Tensor, sin: Tensor, taps: BlockTaps
    ) -> tuple[Tensor, ...]:
        """[B, T, all heads of this rank, D] -> query and key rotated, v_hat, with the light taps of values."""
        theta, initial_c = None, 0.0
        if self.v_scale is not None:
            theta, initial_c = self.v_scale.theta, self.v_scale.initial_c
            query_key_value = tap_value(query_key_value, taps.theta, lambda: widen(theta).clone())
        return rotary_v_scale.rotate_and_scale(
            query_key_value, cos, sin, self.num_key_value_heads, theta, initial_c, taps.value, taps.value_grad
        )

    def _gather_tokens(self, *query_key_value: Tensor) -> tuple[Tensor, ...]:
        """Under context parallelism attention sees all tokens of a share of this rank's heads.

        Key-value heads fewer than context-parallel ranks are repeated first; their gradients add up in the backward.
        """
        axis = self.layout.context
        query, key, value = query_key_value
        repeats = max(1, axis.size // self.num_key_value_heads)
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
        return tuple(tokens_to_heads(states, axis) for states in (query, key, value))

    def _project_apart(self, hidden_states: Tensor, paths_tap: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value by products of their own, so that each path's gradient is whole where the three meet."""
        paths = split_paths(hidden_states, paths_tap)
        return tuple(
            projection(enter_tensor_parallel(path, self.layout)).unflatten(-1, (-1, self.head_dim))
            for projection, path in zip((self.q_proj, self.k_proj, self.v_proj), paths, strict=True)
        )

    def _tap_key_value(self, states: Tensor, leaf: Tensor | None) -> Tensor:
        if self.key_value_heads is None:
            return tap_gradient(states, leaf)
        head, count = self.key_value_heads.start, self.k_proj.weight.shape[0] // self.head_dim
        return tap_shared_gradient(states, leaf, self.layout.tensor, head, count)


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


def tap_attention(
    context: Tensor,
    query: Tensor,
    key: Tensor,
    value_hat: Tensor,
    log_sum_exp: Tensor,
    first_token: Tensor | None,
    taps: BlockTaps,
) -> Tensor:
    """Take the statistics of attention, context [B, heads, T, D] being what carries them."""
    if taps.attention_observer is not None:
        taps.attention_observer(query, key, value_hat, log_sum_exp, first_token)
    context = tap_value(context, taps.attention_sink, attention_sink, query, key, log_sum_exp, first_token)
    context = tap_value(context, taps.attention_lse_max, torch.amax, log_sum_exp, -1)
    if taps.attention_heads is not None:
        figures, entropy = head_patterns(query, key, value_hat, log_sum_exp, first_token)
        context = tap_value(context, taps.attention_heads, lambda: figures)
        context = tap_value(context, taps.attention_entropy, lambda: entropy)
    return context
