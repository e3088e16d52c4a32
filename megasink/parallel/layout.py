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
    """Global rank = ((pipeline * data_size + data) * context_size + context) * tensor_size + tensor.

    Tensor-parallel ranks are neighbours. With data and context as one axis this is the rank order of DeepSpeed's
    PipeModelDataParallelTopology.
    """

    tensor: Axis = Axis()
    data: Axis = Axis()
    pipeline: Axis = Axis()
    sequence_parallel: bool = False
    context: Axis = Axis()
    """Ranks that share each sequence of a data-parallel rank."""
    replica: Axis = Axis()
    """data x context: the ranks that hold the same parameters, which to DeepSpeed is data parallelism."""

    @property
    def world_size(self) -> int:
        return self.tensor.size * self.replica.size * self.pipeline.size


def build_layout(
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    sequence_parallel: bool = False,
    context_parallel: int = 1,
) -> ParallelLayout:
    """Create the process groups of this layout over the initialised world; every rank must call this.

    Raises:
        ValueError: the world size is not a multiple of tensor_parallel * pipeline_parallel * context_parallel.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    if world_size % (tensor_parallel * pipeline_parallel * context_parallel):
        raise ValueError(
            f"{world_size} ranks cannot be split into {tensor_parallel} x {pipeline_parallel} x {context_parallel} "
            "(tensor x pipeline x context)"
        )
    replicas = world_size // (tensor_parallel * pipeline_parallel)
    data = replicas // context_parallel

    def axis(size: int, stride: int) -> Axis:
        return _build_axis(rank, world_size, size, stride)

    replica_axis = axis(replicas, tensor_parallel)
    return ParallelLayout(
        tensor=axis(tensor_parallel, 1),
        context=axis(context_parallel, tensor_parallel),
        data=replica_axis if context_parallel == 1 else axis(data, tensor_parallel * context_parallel),
        replica=replica_axis,
        pipeline=axis(pipeline_parallel, tensor_parallel * replicas),
        sequence_parallel=sequence_parallel and tensor_parallel > 1,
    )


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
