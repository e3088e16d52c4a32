"""A Llama with V-scale for transformers, alone in this file: exported models carry a copy of it.

V-scale (arXiv 2603.17771): each value head's state v becomes v r / (r + C) with r = |v|^2 and C = C_0 exp(theta), theta
learned per layer and key-value head. It acts before the KV cache, which therefore holds scaled values.
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class MegasinkLlamaConfig(LlamaConfig):
    """LlamaConfig with `v_scale_initial_c`, C_0 = hidden_size * head_dim * sigma^2 of the value weights' first draw."""

    model_type = "megasink_llama"


class VScale(nn.Module):
    """Scales what the value projection of one layer emits, [..., key-value heads * head_dim]."""

    def __init__(self, num_key_value_heads: int, initial_c: float):
        super().__init__()
        self.initial_c = initial_c
        self.theta = nn.Parameter(torch.zeros(num_key_value_heads))

    def forward(self, value_states: torch.Tensor) -> torch.Tensor:
        heads = value_states.float().unflatten(-1, (self.theta.shape[0], -1))
        r = heads.square().sum(dim=-1, keepdim=True)
        c = self.initial_c * self.theta.float().exp().unsqueeze(-1)
        return (heads * (r / (r + c))).flatten(-2).to(value_states.dtype)

    def after_projection(self, _projection: nn.Module, _inputs: tuple, value_states: torch.Tensor) -> torch.Tensor:
        """A forward hook: it leaves transformers' attention, in whatever version and implementation, as it is."""
        return self(value_states)


class MegasinkLlamaForCausalLM(LlamaForCausalLM):
    config_class = MegasinkLlamaConfig
    _keep_in_fp32_modules_strict = ("v_scale",)

    def __init__(self, config: MegasinkLlamaConfig):
        super().__init__(config)
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.v_scale = VScale(config.num_key_value_heads, config.v_scale_initial_c)
            attention.v_proj.register_forward_hook(attention.v_scale.after_projection)
        self.post_init()
