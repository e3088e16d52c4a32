"""From what each rank saw to what the whole batch is: one packed MAX and one packed SUM over the world.

Each rank writes what it owns into slots of the whole model and zeros (minus infinity) elsewhere. Figures owned once are
written once: heads by the tensor-parallel rank that holds them, replicated key-value heads by the first rank that uses
each, what is equal on all tensor-parallel ranks by rank 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
import torch.distributed as dist
from torch import Tensor

from megasink.config import ModelConfig
from megasink.parallel.late_copy import LateCopy
from megasink.parallel.layout import ParallelLayout


class Owner(Enum):
    """Which dimension follows the layers', and hence which ranks hold the figure."""

    LAYER = "layer"
    HEADS = "query heads"
    KEY_VALUE_HEADS = "key-value heads"
    SHARD = "layer, each tensor-parallel rank having its own part under sequence parallelism"


@dataclass(frozen=True)
class HeadSplit:
    """The heads of one tensor-parallel rank."""

    heads: int
    first_head: int
    key_value_heads: int
    first_key_value_head: int
    owns_key_value_heads: bool
    """False where another rank already reports the replicated head this rank uses."""

    @classmethod
    def of(cls, config: ModelConfig, layout: ParallelLayout) -> "HeadSplit":
        size, rank = layout.tensor.size, layout.tensor.rank
        heads, groups = config.num_attention_heads // size, config.num_key_value_heads
        if groups >= size:
            return cls(heads, heads * rank, groups // size, groups // size * rank, True)
        return cls(heads, heads * rank, 1, rank * groups // size, rank % (size // groups) == 0)


@dataclass
class _Entry:
    owner: Owner
    total: Tensor
    over: str | None = None
    scale_power: int = 0


class Sums:
    """One rank's figures of the layers it holds, added up over its micro-batches.

    Every `values` has the local layers first: [local L, ...].
    """

    def __init__(self, config: ModelConfig, layout: ParallelLayout, layers: slice):
        self.config = config
        self.layout = layout
        self.layers = layers
        self.split = HeadSplit.of(config, layout)
        self.entries: dict[str, _Entry] = {}
        self.maxima: dict[str, _Entry] = {}
        self.per_document: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.packed_documents = False
        self.batch = 0
        """Sequences of a micro-batch."""
        self.length = 0
        """Tokens of a sequence."""

    def add(self, name: str, owner: Owner, values: Tensor, over: str | None = None, scale_power: int = 0) -> None:
        """Add to a sum. The result is the sum over the world, divided by the sum named `over` if there is one.

        `scale_power`: how often the recorded gradients' scale is in it (1: a gradient's norm, 2: its square).
        """
        values = values.double()
        if name in self.entries:
            self.entries[name].total += values
        else:
            self.entries[name] = _Entry(owner, values.clone(), over, scale_power)

    def maximum(self, name: str, owner: Owner, values: Tensor) -> None:
        """Raise a maximum."""
        values = values.double()
        if name in self.maxima:
            self.maxima[name].total = torch.maximum(self.maxima[name].total, values)
        else:
            self.maxima[name] = _Entry(owner, values)

    def add_per_document(self, name: str, values: Tensor, sequence: Tensor) -> None:
        """One figure per document [local L, X], equal on every tensor-parallel rank; once per micro-batch and name.

        `sequence` [X]: which sequence of the micro-batch each document lies in, ascending. Set `packed_documents` if
        there may be another number of documents than one in a sequence.
        """
        self.per_document.setdefault(name, []).append((values.double(), sequence))

    def merge(self, others: "Sums") -> None:
        """Add another micro-batch's figures, copied: the tensors in `others` may change afterwards."""
        self.batch, self.length, self.packed_documents = others.batch, others.length, others.packed_documents
        for name, entry in others.entries.items():
            self.add(name, entry.owner, entry.total, entry.over, entry.scale_power)
        for name, entry in others.maxima.items():
            self.maximum(name, entry.owner, entry.total.clone())
        for name, micro_batches in others.per_document.items():
            for values, sequence in micro_batches:
                self.add_per_document(name, values.clone(), sequence.clone())

    def reduce(self, gradient_scale: float) -> Callable[[], dict[str, Tensor]]:
        """Reduce over the world; every rank must call this. The returned function waits for the device to have done so
        and gives the figures of the whole batch, float64 on the CPU, [L, ...].

        Args:
            gradient_scale: what recorded gradients are multiplied with to be those of the whole batch's loss.
        """
        maxima = {name: self._place(entry, -torch.inf) for name, entry in self.maxima.items()}
        maxima["_slots"] = next(iter(maxima.values())).new_full((), self._documents_per_sequence())
        maxima = _all_reduce(maxima, self.layout, dist.ReduceOp.MAX)
        slots = int(maxima.pop("_slots")) if self.packed_documents else 1

        totals = {name: self._place(entry, 0.0) for name, entry in self.entries.items()}
        totals |= self._place_documents(slots)
        arrive = _to_host(maxima | _all_reduce(totals, self.layout, dist.ReduceOp.SUM))
        entries, per_document = self.entries, list(self.per_document)

        def figures() -> dict[str, Tensor]:
            arrays = arrive()
            present = arrays.pop("document_present")[0].bool()
            totals = {name: arrays[name] * gradient_scale**entry.scale_power for name, entry in entries.items()}
            for name, entry in entries.items():
                arrays[name] = totals[name] if entry.over is None else _divide(totals[name], totals[entry.over])
            return arrays | {name: arrays[name][:, present] for name in per_document}

        return figures

    def _documents_per_sequence(self) -> float:
        if not self.packed_documents:
            return 1.0
        sequences = next(iter(self.per_document.values()))
        return max(float(sequence.bincount().max()) if len(sequence) else 0.0 for _, sequence in sequences)

    def _place(self, entry: _Entry, elsewhere: float) -> Tensor:
        """The entry in the whole model's array; `elsewhere` where this rank owns nothing."""
        split, layout = self.split, self.layout
        values = entry.total
        owned, head_slots, first = layout.tensor.rank == 0, None, 0
        if entry.owner is Owner.HEADS:
            owned, head_slots, first = True, self.config.num_attention_heads, split.first_head
        elif entry.owner is Owner.KEY_VALUE_HEADS:
            owned, head_slots = split.owns_key_value_heads, self.config.num_key_value_heads
            first = split.first_key_value_head
        elif entry.owner is Owner.SHARD:
            owned = layout.sequence_parallel or owned
        rest = values.shape[1:] if head_slots is None else (head_slots, *values.shape[2:])
        whole = values.new_full((self.config.num_layers, *rest), elsewhere)
        if owned and head_slots is None:
            whole[self.layers] = values
        elif owned:
            whole[self.layers, first : first + values.shape[1]] = values
        return whole

    def _place_documents(self, slots: int) -> dict[str, Tensor]:
        """[L, data ranks, M, B, slots] for M micro-batches: no two ranks write to one place, and all is in the order of
        the global batch, of which each data-parallel rank has a contiguous part.
        """
        layout, arrays = self.layout, {}
        for name, micro_batches in self.per_document.items():
            first = micro_batches[0][0]
            shape = (self.config.num_layers, layout.data.size, len(micro_batches), self.batch, slots)
            whole = torch.zeros(shape, dtype=torch.float64, device=first.device)
            present = torch.zeros((1, *shape[1:]), dtype=torch.float64, device=first.device)
            for m, (values, sequence) in enumerate(micro_batches):
                place = torch.arange(len(sequence), device=first.device) - torch.searchsorted(sequence, sequence)
                if layout.tensor.rank == 0:
                    local = values.new_zeros((len(values), self.batch, slots))
                    local[:, sequence, place] = values
                    whole[self.layers, layout.data.rank, m] = local
                if layout.tensor.rank == 0 and layout.pipeline.rank == 0:
                    # a Python number in place of the tensor would wait for the device
                    present[0, layout.data.rank, m, sequence, place] = values.new_ones(len(sequence))
            arrays[name] = whole
            arrays["document_present"] = present
        return arrays


def _all_reduce(arrays: dict[str, Tensor], layout: ParallelLayout, op: dist.ReduceOp.RedOpType) -> dict[str, Tensor]:
    """All arrays reduced over the world in one packed all-reduce."""
    packed = torch.cat([array.flatten() for array in arrays.values()])
    if layout.world_size > 1:
        dist.all_reduce(packed, op=op)
    pieces = packed.split([array.numel() for array in arrays.values()])
    return {name: piece.view(array.shape) for (name, array), piece in zip(arrays.items(), pieces, strict=True)}


def _to_host(arrays: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begin one copy of all arrays to the CPU; the returned function gives them."""
    copy = LateCopy(torch.cat([array.flatten() for array in arrays.values()]))
    shapes = {name: array.shape for name, array in arrays.items()}

    def arrived() -> dict[str, Tensor]:
        pieces = copy.wait().split([shape.numel() for shape in shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    return arrived


def _divide(total: Tensor, count: Tensor) -> Tensor:
    """total [L, ...] over count [L, ...], which lacks total's head dimension."""
    while count.dim() < total.dim():
        count = count.unsqueeze(1)
    return total / count
