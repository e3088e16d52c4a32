"""RMSNorm."""

import torch
from torch import Tensor, nn

from megasink.parallel.collectives import copy_to_tensor_parallel
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.shard import sharded_parameter


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + epsilon) over the last dimension, computed in fp32 at least."""

    def __init__(self, hidden_size: int, epsilon: float, layout: ParallelLayout):
        super().__init__()
        self.layout = layout
        self.epsilon = epsilon
        self.weight = sharded_parameter((hidden_size,), layout.tensor, dim=None)
        nn.init.ones_(self.weight)

    def local_weight(self) -> Tensor:
        """The weight [H], with its gradient summed over the ranks that see tokens of their own only."""
        if self.layout.sequence_parallel:
            return copy_to_tensor_parallel(self.weight, self.layout.tensor)
        return self.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H] of the same dtype."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return self.local_weight() * normed.to(hidden_states.dtype)
