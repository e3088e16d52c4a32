"""Where one rank stands in a parallel layout, and the process groups it talks through."""

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Axis:
    """One axis of the layout as one rank sees it. `group` is None where the axis has a single rank."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class ParallelLayout:
    """Global rank = (pipeline * data_size + data) * tensor_size + tensor: tensor-parallel ranks are neighbours.

    This is the rank order of DeepSpeed's PipeModelDataParallelTopology.
    """

    tensor: Axis = Axis()
    data: Axis = Axis()
    pipeline: Axis = Axis()
    sequence_parallel: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor.size * self.data.size * self.pipeline.size


def build_layout(
    tensor_parallel: int = 1, pipeline_parallel: int = 1, sequence_parallel: bool = False
) -> ParallelLayout:
    """Create the process groups of this layout over the initialised world; every rank must call this.

    Raises:
        ValueError: the world size is not a multiple of tensor_parallel * pipeline_parallel.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    if world_size % (tensor_parallel * pipeline_parallel):
        raise ValueError(
            f"{world_size} ranks cannot be split into {tensor_parallel} x {pipeline_parallel} (tensor x pipeline)"
        )
    sizes = {
        "pipeline": pipeline_parallel,
        "data": world_size // (tensor_parallel * pipeline_parallel),
        "tensor": tensor_parallel,
    }
    strides = {"pipeline": sizes["data"] * sizes["tensor"], "data": sizes["tensor"], "tensor": 1}
    axes = {name: _build_axis(rank, world_size, sizes[name], strides[name]) for name in sizes}
    return ParallelLayout(**axes, sequence_parallel=sequence_parallel and tensor_parallel > 1)


def _build_axis(rank: int, world_size: int, size: int, stride: int) -> Axis:
    if size == 1:
        return Axis()
    own = None
    for first in range(world_size):
        if (first // stride) % size == 0:
            ranks = [first + i * stride for i in range(size)]
            group = dist.new_group(ranks)
            if rank in ranks:
                own = group
    return Axis(size, (rank // stride) % size, own)
