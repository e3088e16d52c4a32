"""How a parameter is cut over tensor-parallel ranks, and initial values that do not depend on the cut."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megasink.parallel.layout import Axis

ALIGNED_ELEMENTS = 8
"""bf16 numbers in 16 bytes, the widest load of a GPU's thread."""


@dataclass(frozen=True)
class Shard:
    """This rank holds slice `rank` of `size` equal ones along `dim` of the whole parameter; dim None: all of it.

    `valid` is how many entries along dim 0 of the whole parameter are real; the rest pads the vocabulary.
    """

    dim: int | None = None
    rank: int = 0
    size: int = 1
    valid: int | None = None

    def whole_shape(self, local_shape: torch.Size) -> list[int]:
        shape = list(local_shape)
        if self.dim is not None:
            shape[self.dim] *= self.size
        return shape

    def take(self, whole: Tensor) -> Tensor:
        """The slice of the whole parameter that this rank holds."""
        return whole if self.dim is None else whole.chunk(self.size, dim=self.dim)[self.rank]


def sharded_parameter(whole_shape: tuple[int, ...], axis: Axis, dim: int | None, valid: int | None = None):
    """An uninitialised parameter holding this rank's slice, marked the way DeepSpeed's gradient norm needs.

    DeepSpeed counts a parameter without the mark `tensor_model_parallel` on tensor-parallel rank 0 only.
    """
    shape = list(whole_shape)
    if dim is not None:
        shape[dim] //= axis.size
    parameter = nn.Parameter(torch.empty(shape))
    sharded = dim is not None and axis.size > 1
    parameter.shard = Shard(dim if sharded else None, axis.rank if sharded else 0, axis.size if sharded else 1, valid)
    if sharded:
        parameter.tensor_model_parallel = True
    return parameter


@torch.no_grad()
def normal_(parameter: nn.Parameter, std: float, seed: int, name: str) -> None:
    """Fill with N(0, std^2) drawn for the whole parameter from (seed, name), whatever the layout."""
    whole = torch.zeros(parameter.shard.whole_shape(parameter.shape), device=parameter.device)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:7], "little"))
    whole[: parameter.shard.valid].normal_(0.0, std, generator=generator)
    parameter.copy_(parameter.shard.take(whole))
