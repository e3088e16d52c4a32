"""Column-, row- and vocabulary-parallel layers (Megatron-LM, arXiv 1909.08053, section 3).

A tensor-parallel region begins with `enter_tensor_parallel`, holds column-parallel products, rank-local work and one
row-parallel product, and ends inside that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megasink.parallel.collectives import (
    copy_to_tensor_parallel,
    gather_sequence,
    reduce_from_tensor_parallel,
    reduce_scatter_sequence,
)
from megasink.parallel.fp8 import fp8_linear
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.main_gradient import MainGradient, summing_linear
from megasink.parallel.shard import sharded_parameter


class ParallelLinear(nn.Module):
    """A linear layer split over tensor-parallel ranks."""

    fp8: torch.dtype | None = None
    """Format of its output's gradient where its products are fp8 (megasink.parallel.fp8)."""
    main_gradient: MainGradient | None = None
    """Where its products add the weight's gradient; None: autograd hands it on."""


def enter_tensor_parallel(hidden_states: Tensor, layout: ParallelLayout) -> Tensor:
    """[B, T or its local share, H] -> [B, T, H] on every tensor-parallel rank."""
    if layout.sequence_parallel:
        return gather_sequence(hidden_states, layout.tensor)
    return copy_to_tensor_parallel(hidden_states, layout.tensor)


def leave_tensor_parallel(partial: Tensor, layout: ParallelLayout) -> Tensor:
    """Partial sums [B, T, H] of the ranks -> the residual stream's layout."""
    if layout.sequence_parallel:
        return reduce_scatter_sequence(partial, layout.tensor)
    return reduce_from_tensor_parallel(partial, layout.tensor)


class ColumnParallelLinear(ParallelLinear):
    """y = x W^T with W `[out, in]` split by rows of W: each rank computes its share of the outputs.

    `replicated` keeps the whole weight on every rank (key-value heads fewer than ranks); each rank then uses only
    `rows` of it, and the gradient is summed over the ranks inside autograd.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        layout: ParallelLayout,
        rows: slice | None = None,
        valid: int | None = None,
    ):
        super().__init__()
        self.axis = layout.tensor
        self.rows = rows
        self.weight = sharded_parameter(
            (out_features, in_features), layout.tensor, dim=0 if rows is None else None, valid=valid
        )

    def local_weight(self) -> Tensor:
        """The weight of this rank's outputs, [out / ranks, in]."""
        if self.rows is None:
            return self.weight
        return copy_to_tensor_parallel(self.weight, self.axis)[self.rows]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, in] inside the tensor-parallel region -> [B, T, out / ranks]."""
        return _linear(hidden_states, self.local_weight(), self)


def fused_column_parallel(
    hidden_states: Tensor, layers: list[ColumnParallelLinear], joined: Tensor | None = None
) -> Tensor:
    """Several column-parallel products of one input as one matrix product: [B, T, in] -> [B, T, sum of out / ranks].

    `joined` is what `joined_weight` says of the layers; without it their weights are copied together.
    """
    weights = [layer.local_weight() for layer in layers]
    if layers[0].fp8 is not None:
        return fp8_linear(hidden_states, weights, layers[0].fp8, joined)
    gradients = [layer.main_gradient for layer in layers]
    if all(gradient is not None for gradient in gradients):
        return summing_linear(hidden_states, torch.cat(weights) if joined is None else joined, gradients)
    if joined is None:
        return F.linear(hidden_states, torch.cat(weights))
    return _JoinedLinear.apply(hidden_states, joined, *weights)


def joined_weight(layers: list[ColumnParallelLinear]) -> Tensor | None:
    """The layers' weights as one without a copy, where they lie behind each other as in DeepSpeed's flat buffers (ZeRO
    1 and 2); None elsewhere. Valid until the weights are moved: ask in each forward pass."""
    first, end = layers[0].weight, layers[0].weight.data_ptr()
    for layer in layers:
        weight = layer.weight
        at_home = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        # ZeRO-3 gathers weights for a moment: they are marked
        if weight.data_ptr() != end or not at_home or layer.rows is not None or hasattr(weight, "ds_id"):
            return None
        end += weight.numel() * weight.element_size()
    rows = sum(layer.weight.shape[0] for layer in layers)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))


class _JoinedLinear(torch.autograd.Function):
    """x W^T for a W whose rows are those of several weights; each receives its rows of the gradient."""

    # torch's compiler (2.11, 2.13), without gradients, takes `ctx` away where there are as many inputs as names, `ctx`
    # and `weights` among them: here of two weights. So none has a name of its own.
    @staticmethod
    def forward(ctx, *inputs):
        hidden_states, joined, *weights = inputs
        ctx.save_for_backward(hidden_states, joined)
        ctx.rows = [weight.shape[0] for weight in weights]
        return F.linear(hidden_states, joined)

    @staticmethod
    def backward(ctx, gradient):
        hidden_states, joined = ctx.saved_tensors
        weight_gradient = gradient.flatten(0, -2).t() @ hidden_states.flatten(0, -2)
        return gradient @ joined, None, *weight_gradient.split(ctx.rows)


class RowParallelLinear(ParallelLinear):
    """y = x W^T with W `[out, in]` split by columns of W: the ranks' partial products are summed."""

    def __init__(self, in_features: int, out_features: int, layout: ParallelLayout):
        super().__init__()
        self.layout = layout
        self.weight = sharded_parameter((out_features, in_features), layout.tensor, dim=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, in / ranks] -> [B, T (or its local share), out]."""
        return leave_tensor_parallel(_linear(hidden_states, self.weight, self), self.layout)


def _linear(hidden_states: Tensor, weight: Tensor, layer: ParallelLinear) -> Tensor:
    if layer.fp8 is not None:
        return fp8_linear(hidden_states, [weight], layer.fp8)
    if layer.main_gradient is not None:
        return summing_linear(hidden_states, weight, [layer.main_gradient])
    return F.linear(hidden_states, weight)


class VocabParallelEmbedding(nn.Module):
    """Token embedding with the (padded) vocabulary split over tensor-parallel ranks."""

    main_gradient: MainGradient | None = None
    """As ParallelLinear's, for logits through its weight."""

    def __init__(self, padded_vocab_size: int, hidden_size: int, layout: ParallelLayout, vocab_size: int):
        super().__init__()
        self.layout = layout
        self.weight = sharded_parameter((padded_vocab_size, hidden_size), layout.tensor, dim=0, valid=vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> [B, T (or its local share), H]."""
        if self.layout.tensor.size == 1:
            return F.embedding(tokens, self.weight)
        rows = self.weight.shape[0]
        local = tokens - self.layout.tensor.rank * rows
        elsewhere = (local < 0) | (local >= rows)
        embedded = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return leave_tensor_parallel(embedded.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.layout)
