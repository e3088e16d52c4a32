"""One transformer block: attention and MLP, each behind an RMSNorm, each added to the residual stream."""

import torch
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model.attention import Attention
from megasink.model.mlp import MLP
from megasink.model.norm import RMSNorm
from megasink.model.rope import rotary_tables
from megasink.model.taps import BlockTaps, sum_of_squares, tap_gradient, tap_value
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.shard import normal_


class Block(nn.Module):
    """h -> h + attention(norm(h)) -> + mlp(norm(.)). Weights are drawn from (seed, layer) unless `seed` is None.

    `recorder`, when set, is asked at each forward pass with gradients for taps: `recorder.open(block, hidden_states)`
    returns BlockTaps or None.
    """

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

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T (or its local share), H] -> the same shape."""
        length = hidden_states.shape[1] * (self.layout.tensor.size if self.layout.sequence_parallel else 1)
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        cos, sin = rotary_tables(length, self.config.kv_channels, self.config.rotary_base, hidden_states.device, wide)
        taps = None
        if self.recorder is not None and torch.is_grad_enabled():
            taps = self.recorder.open(self, hidden_states)
        return self.run(hidden_states, cos, sin, taps)

    def compile(self) -> None:
        """Compile the block's arithmetic; taps and tables stay outside."""
        self.run = torch.compile(self.transform)

    def transform(self, hidden_states: Tensor, cos: Tensor, sin: Tensor, taps: BlockTaps | None) -> Tensor:
        """The block's equations."""
        attention_input = self.input_layernorm(hidden_states)
        if taps is not None:
            # complete here: below the norm, above the tensor-parallel region whose backward sums over the ranks
            attention_input = tap_gradient(attention_input, taps.attention_norm_grad)
        hidden_states = hidden_states + self.self_attn(attention_input, cos, sin, taps)
        mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
        if taps is not None:
            mlp_output = tap_value(mlp_output, taps.mlp_output, sum_of_squares(mlp_output))
        hidden_states = hidden_states + mlp_output
        if taps is not None:
            hidden_states = tap_value(hidden_states, taps.block_output, sum_of_squares(hidden_states))
        return hidden_states
