"""One packed sum over the world: each rank writes what it owns into slots of the whole model, zeros elsewhere."""

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.model.attention import Attention
from megasink.parallel.layout import ParallelLayout


class SumOverWorld:
    """Collects one rank's contributions to global float64 arrays and reduces them together.

    Heads are written by the tensor-parallel rank that holds them (replicated key-value heads by the first one that
    uses each), what is equal on all tensor-parallel ranks by rank 0, sequences by their data-parallel rank.
    """

    def __init__(self, layout: ParallelLayout, num_layers: int, sequences: int, bins: int, attention: Attention):
        self.layout = layout
        self.num_layers = num_layers
        self.sequences = sequences
        self.heads = attention.num_heads * layout.tensor.size
        self.first_head = attention.num_heads * layout.tensor.rank
        self.replicated = attention.key_value_heads is not None
        if self.replicated:
            self.key_value_heads = attention.k_proj.weight.shape[0] // attention.head_dim
            self.first_key_value_head = attention.key_value_heads.start
        else:
            self.key_value_heads = attention.num_key_value_heads * layout.tensor.size
            self.first_key_value_head = attention.num_key_value_heads * layout.tensor.rank
        sharers = layout.tensor.size // self.key_value_heads if self.replicated else 1
        self.key_value_head_weight = 1.0 if layout.tensor.rank % sharers == 0 else 0.0
        self.arrays: dict[str, Tensor] = {}

    def add_heads(self, name: str, layer: int, values: Tensor) -> None:
        """values [heads of this rank, ...]."""
        target = self._array(name, (self.heads, *values.shape[1:]), values)
        target[layer, self.first_head : self.first_head + len(values)] += values

    def add_key_value_heads(self, name: str, layer: int, values: Tensor) -> None:
        """values [key-value heads of this rank, ...]."""
        target = self._array(name, (self.key_value_heads, *values.shape[1:]), values)
        own = slice(self.first_key_value_head, self.first_key_value_head + len(values))
        target[layer, own] += values * self.key_value_head_weight

    def add_replicated(self, name: str, layer: int, values: Tensor) -> None:
        """values equal on every tensor-parallel rank, a sum over this rank's sequences."""
        target = self._array(name, values.shape, values)
        if self.layout.tensor.rank == 0:
            target[layer] += values

    def add_sequences(self, name: str, layer: int, values: Tensor) -> None:
        """values [micro-batches, B], one per sequence, equal on every tensor-parallel rank."""
        target = self._array(name, (self.sequences,), values)
        if self.layout.tensor.rank == 0:
            slots = target[layer].view(values.shape[0], self.layout.data.size, values.shape[1])
            slots[:, self.layout.data.rank] += values

    def reduce(self) -> dict[str, Tensor]:
        """Every array summed over the world, on the CPU, [num_layers, ...]."""
        packed = torch.cat([array.flatten() for array in self.arrays.values()])
        if self.layout.world_size > 1:
            dist.all_reduce(packed)
        pieces = packed.cpu().split([array.numel() for array in self.arrays.values()])
        return {name: piece.view_as(array) for (name, array), piece in zip(self.arrays.items(), pieces, strict=True)}

    def _array(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if name not in self.arrays:
            self.arrays[name] = torch.zeros((self.num_layers, *shape), dtype=torch.float64, device=like.device)
        return self.arrays[name]
