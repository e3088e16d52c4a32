"""What really happens, counted: bytes of every collective operation, of the tensors alive, of what autograd keeps."""

import gc
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

_NAMES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "send": "send",
    "recv_": "receive",
    "recv_any_source_": "receive",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
}


class CollectiveCounter(TorchDispatchMode):
    """Counts c10d's operators while active. `calls`: (operation, ranks of the group, bytes of the message) -> times.

    The message is the whole buffer: an all-gather's output, a reduce-scatter's input, what a send sends.
    """

    def __init__(self):
        super().__init__()
        self.calls: Counter[tuple[str, int, int]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d" and (name := function._opname) in _NAMES:
            ranks = next(ProcessGroup.unbox(arg).size() for arg in args if isinstance(arg, torch.ScriptObject))
            sizes = [_num_bytes(arg) for arg in args if isinstance(arg, (torch.Tensor, list, tuple))]
            self.calls[_NAMES[name], ranks, max(sizes)] += 1
        return function(*args, **(kwargs or {}))


def _num_bytes(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_num_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0


def living_tensors() -> dict[int, int]:
    """Storage address -> bytes of every tensor the process can reach."""
    gc.collect()
    found = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type == "cpu":
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None and tensor.layout == torch.strided:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def tensors(objects: Iterable) -> list[torch.Tensor]:
    """Those among the objects."""
    return [item for item in objects if issubclass(type(item), torch.Tensor) and type(item) is not FakeTensor]


def storages(among: Iterable[torch.Tensor]) -> dict[int, int]:
    """Storage -> bytes, on any device; valid while the tensors live."""
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in among}


@contextmanager
def counted_autograd(ignored: set[int]) -> Iterator[dict[int, int]]:
    """Yields a dict that fills with storage -> bytes of what autograd keeps, without storages in `ignored`."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ignored:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def compiled_without_code() -> AbstractContextManager:
    """In it torch.compile goes as far as the choice of what is kept for the backward pass, as inductor makes it; then
    the graphs run eagerly."""
    torch._dynamo.reset()

    def partition(*args, **kwargs):
        return min_cut_rematerialization_partition(*args, **(kwargs | {"compiler": "inductor"}))

    def run_eagerly(module, _inputs):
        return make_boxed_func(module.forward)

    backend = aot_autograd(
        fw_compiler=run_eagerly,
        bw_compiler=run_eagerly,
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    return torch.compiler.set_stance(force_backend=backend)


def train_counted(file: str) -> None:
    """The training command of this process; `file`.RANK then holds the last step's collectives, and living bytes."""
    from megasink.train import loop, main

    train_step = loop._train_step

    def counted(run, batch, lr):
        with CollectiveCounter() as counter:
            loss = train_step(run, batch, lr)
        calls = [[*call, times] for call, times in sorted(counter.calls.items())]
        alive = sum(living_tensors().values())
        Path(f"{file}.{os.environ['RANK']}").write_text(json.dumps({"calls": calls, "alive": alive}))
        return loss

    loop._train_step = counted
    main()
