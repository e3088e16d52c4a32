"""One transformer block: attention and MLP, each behind an RMSNorm, each added to the residual stream."""

import torch
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model import residual_norm
from megasink.model.activation_statistics import activation_moments, activation_order
from megasink.model.attention import Attention
from megasink.model.documents import Boundaries, find_boundaries, positions_in_document
from megasink.model.mlp import MLP
from megasink.model.norm import RMSNorm
from megasink.model.recompute import Recomputation, recomputed
from megasink.model.rope import rotary_tables
from megasink.model.taps import BlockTaps, sum_of_squares, tap_gradient, tap_value
from megasink.parallel.fp8 import GRADIENT_FORMATS, Fp8
from megasink.parallel.layers import ParallelLinear
from megasink.parallel.layout import Axis, ParallelLayout
from megasink.parallel.shard import normal_

States = Tensor | tuple[Tensor, Tensor]
"""What flows between layers: hidden states, and document ids int [B, T] beside them where documents are kept apart."""


def split_states(states: States) -> tuple[Tensor, Tensor | None]:
    """(hidden states or tokens, document ids or None)."""
    return states if isinstance(states, tuple) else (states, None)


def join_states(hidden_states: Tensor, document_ids: Tensor | None) -> States:
    return hidden_states if document_ids is None else (hidden_states, document_ids)


class Block(nn.Module):
    """h -> h + attention(norm(h)) -> + mlp(norm(.)). Weights are drawn from (seed, layer) unless `seed` is None.

    `recorder`, when set, is asked at each forward pass for taps: `recorder.open(layer_index, hidden_states,
    first_token)` returns BlockTaps or None.
    """

    fused = False
    """Whether kernels of several equations stand for them where they can, see `prepare`."""

    def __init__(self, config: ModelConfig, layout: ParallelLayout, layer_index: int, seed: int | None = None):
        super().__init__()
        self.config = config
        self.layout = layout
        self.layer_index = layer_index
        self.recorder = None
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon, layout)
        self.self_attn = Attention(config, layout)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon, layout)
        self.mlp = MLP(config, layout)
        self.run = self.transform
        if seed is not None:
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    normal_(parameter, config.init_method_std, seed, f"layers.{layer_index}.{name}")

    def forward(self, states: States) -> States:
        """Hidden states [B, T (or its local share), H] -> the same shape; document ids pass through."""
        hidden_states, document_ids = split_states(states)
        length = hidden_states.shape[1] * (self.layout.tensor.size if self.layout.sequence_parallel else 1)
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        context = self.layout.context
        cos, sin = rotary_tables(self.config, length * context.size, hidden_states.device, wide)
        where = slice(length * context.rank, length * (context.rank + 1))
        boundaries = None
        if document_ids is not None:
            if self.config.reset_position_ids:
                where = positions_in_document(document_ids)[:, where]
            if self.config.reset_attention_mask:
                boundaries = find_boundaries(document_ids)
        cos, sin = cos[where], sin[where]
        taps = None
        if self.recorder is not None:
            first_token = None if boundaries is None else boundaries.first_token
            taps = self.recorder.open(self.layer_index, hidden_states, first_token)
        weights = self.self_attn.joined_weight(), self.mlp.joined_weight()
        return join_states(self.run(hidden_states, cos, sin, boundaries, taps, weights), document_ids)

    def prepare(self, recompute: Recomputation = "none", compile: bool = False, fp8: Fp8 = "off") -> None:
        """Choose what is kept for the backward pass and how linear layers multiply, and compile the arithmetic, with
        kernels where there are some; taps and tables stay outside."""
        self.fused = self.self_attn.fused = compile
        for module in self.modules():
            if isinstance(module, ParallelLinear):
                module.fp8 = GRADIENT_FORMATS[fp8]
        if recompute == "full":
            # outside of what is compiled: inside, torch 2.11 keeps the matrix products
            self.run = recomputed(torch.compile(self.transform) if compile else self.transform, "full")
        else:
            run = recomputed(self.transform, recompute)
            self.run = torch.compile(run) if compile else run

    def transform(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        boundaries: Boundaries | None,
        taps: BlockTaps | None,
        joined_weights: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Tensor:
        """The block's equations, with the places where statistics are taken."""
        taps = taps or BlockTaps()
        shared = self.layout.tensor if self.layout.sequence_parallel else Axis()
        # at the entry, before the branch leaves the residual stream
        hidden_states = tap_gradient(hidden_states, taps.block_input_grad)
        hidden_states = tap_value(hidden_states, taps.block_input, sum_of_squares, hidden_states)

        # g2 is complete here: below the norm, above the tensor-parallel region whose backward sums over the ranks
        hidden_states, attention_input = self._branch(
            self.input_layernorm, hidden_states, taps.attention_norm_input_grad, taps.attention_norm_grad
        )
        hidden_states = hidden_states + self.self_attn(attention_input, cos, sin, boundaries, taps, joined_weights[0])
        hidden_states = tap_gradient(hidden_states, taps.middle_grad)
        hidden_states = tap_value(hidden_states, taps.middle, sum_of_squares, hidden_states)

        hidden_states, mlp_input = self._branch(
            self.post_attention_layernorm, hidden_states, taps.mlp_norm_input_grad, taps.mlp_norm_grad
        )
        mlp_output = self.mlp(mlp_input, joined_weights[1])
        mlp_output = tap_value(mlp_output, taps.mlp_output, sum_of_squares, mlp_output)
        mlp_output = tap_value(mlp_output, taps.mlp_output_moments, activation_moments, mlp_output)
        mlp_output = tap_value(mlp_output, taps.mlp_output_order, activation_order, mlp_output, shared)
        hidden_states = tap_gradient(hidden_states + mlp_output, taps.block_output_grad)
        hidden_states = tap_value(hidden_states, taps.block_output, sum_of_squares, hidden_states)
        hidden_states = tap_value(hidden_states, taps.block_output_moments, activation_moments, hidden_states)
        return tap_value(hidden_states, taps.block_output_order, activation_order, hidden_states, shared)

    def _branch(
        self, norm: RMSNorm, hidden_states: Tensor, input_grad_tap: Tensor | None, grad_tap: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and, normed, what a branch begins with, whose gradients the taps are of."""
        if self.fused and input_grad_tap is None and residual_norm.usable(hidden_states):
            return residual_norm.residual_norm(hidden_states, norm.local_weight(), norm.epsilon, grad_tap)
        return hidden_states, tap_gradient(norm(tap_gradient(hidden_states, input_grad_tap)), grad_tap)
