"""Parameters that several ranks hold must be equal to the bit; where they are not, a run has gone wrong silently."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megasink.parallel.layout import Axis, ParallelLayout

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def differing_parameter(model: nn.Module, layout: ParallelLayout) -> str | None:
    """The first parameter whose copies differ, and between whom, as this rank sees it; None where all agree.

    Every rank must call this. Compared are data- and context-parallel copies of everything (under ZeRO-3, which keeps
    none, nothing), tensor-parallel copies of what is not cut, and pipeline copies of a tied embedding.
    """
    names, digests, whole, cut, tied = [], [], [], [], []
    for name, parameter in model.named_parameters():
        partitioned = getattr(parameter, "ds_tensor", None) is not None
        names.append(name)
        digests.append(_digest(parameter.ds_tensor if partitioned else parameter))
        whole.append(not partitioned)
        cut.append(parameter.shard.dim is not None)
        tied.append(name.startswith("tied_modules."))
    table = torch.stack(digests)
    device = table.device
    found = [
        ("data-parallel", _differs(table, torch.tensor(whole, device=device), layout.replica)),
        ("tensor-parallel", _differs(table, ~torch.tensor(cut, device=device), layout.tensor)),
    ]
    for kind, differs in found:
        if differs.any():
            return f"{names[int(differs.nonzero()[0])]} differs between {kind} ranks"
    of_tied = [table[at] for at, is_tied in enumerate(tied) if is_tied]
    held = torch.tensor([bool(of_tied)], device=device)
    one = of_tied[0] if of_tied else torch.zeros(2, dtype=torch.int64, device=device)
    if _differs(one.unsqueeze(0), held, layout.pipeline).any():
        return "the tied embedding differs between the first and the last pipeline stage"
    return None


def _digest(tensor: Tensor) -> Tensor:
    """int64 [2]: wrapping sums of the values' bits, plain and weighted by position."""
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()]).to(torch.int64)
    weights = torch.arange(len(bits), device=bits.device) % 65521 + 1
    return torch.stack((bits.sum(), (bits * weights).sum()))


def _differs(table: Tensor, compared: Tensor, axis: Axis) -> Tensor:
    """bool [N]: rows of int64 [N, 2] that are not the same on all ranks of the axis that compare them."""
    if axis.size == 1:
        return torch.zeros_like(compared)
    limits = torch.iinfo(torch.int64)
    smallest = table.masked_fill(~compared.unsqueeze(1), limits.max)
    largest = table.masked_fill(~compared.unsqueeze(1), limits.min)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=axis.group)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=axis.group)
    return ((smallest != largest) & (smallest <= largest)).any(dim=1) & compared
