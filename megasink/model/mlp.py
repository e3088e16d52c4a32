"""SwiGLU MLP (arXiv 2002.05202), split over its inner columns."""

from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model.swiglu import swiglu
from megasink.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    enter_tensor_parallel,
    fused_column_parallel,
    joined_weight,
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

    def joined_weight(self) -> Tensor | None:
        """Of the gate and up projections."""
        return joined_weight([self.gate_proj, self.up_proj])

    def forward(self, hidden_states: Tensor, joined: Tensor | None = None) -> Tensor:
        """[B, T (or its local share), H] -> the same shape; `joined` is joined_weight()."""
        hidden_states = enter_tensor_parallel(hidden_states, self.layout)
        return self.down_proj(swiglu(fused_column_parallel(hidden_states, [self.gate_proj, self.up_proj], joined)))
