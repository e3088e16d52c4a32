"""SwiGLU MLP (arXiv 2002.05202), split over its inner columns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model.swiglu import swiglu
from megasink.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    enter_tensor_parallel,
)
from megasink.parallel.layout import ParallelLayout


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)); parameter names are Hugging Face's."""

    def __init__(self, config: ModelConfig, layout: ParallelLayout):
        super().__init__()
        self.layout = layout
        self.gate_proj = ColumnParallelLinear(config.hidden_size, config.ffn_hidden_size, layout)
        self.up_proj = ColumnParallelLinear(config.hidden_size, config.ffn_hidden_size, layout)
        self.down_proj = RowParallelLinear(config.ffn_hidden_size, config.hidden_size, layout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T (or its local share), H] -> the same shape."""
        hidden_states = enter_tensor_parallel(hidden_states, self.layout)
        weights = torch.cat((self.gate_proj.local_weight(), self.up_proj.local_weight()))
        return self.down_proj(swiglu(F.linear(hidden_states, weights)))
