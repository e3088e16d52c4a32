"""Linear layers whose weights' gradients are added to fp32 sums by the products that make them.

The product's own bf16 gradient would be written, read and added in a pass of its own, and rounded before it is added.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MainGradient(NamedTuple):
    """Where a weight's gradients of a step's micro-batches are added up."""

    total: Tensor
    """fp32, the weight's shape, contiguous."""
    empty: Tensor
    """bool [] on the CPU: what `total` holds is of an earlier step, to be overwritten. Read by `tolist()`:
    `bool()` would look like a wait for a GPU in a profile."""


def summing_linear(hidden_states: Tensor, weight: Tensor, gradients: list[MainGradient]) -> Tensor:
    """x W^T, with W's gradient added to sums and not given to autograd.

    Args:
        hidden_states: [..., in]; must require a gradient, or there is no backward pass.
        weight: [out, in], of the same dtype.
        gradients: of the weights whose rows `weight` consists of, in order.
    """
    weight = weight.detach()
    return _SummingLinear.apply(hidden_states, weight, *(each for gradient in gradients for each in gradient))


class _SummingLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):  # without names of their own: see layers._JoinedLinear
        hidden_states, weight, *gradients = inputs
        ctx.save_for_backward(hidden_states, weight, *gradients)
        return F.linear(hidden_states, weight)

    @staticmethod
    def backward(ctx, upstream):
        hidden_states, weight, *gradients = ctx.saved_tensors
        gradient = _backward(upstream, hidden_states, weight, gradients[0::2], gradients[1::2])
        return gradient, None, *[None] * len(gradients)


# Both products in one operator, whose result is needed: the compiler would drop one that returns nothing. It is not
# told that the sums change: nothing else in a graph reads them, and it would copy them.
@torch.library.custom_op(
    "megasink::summing_linear_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor hidden_states, Tensor weight, Tensor[] totals, Tensor[] empty) -> Tensor",
)
def _backward(upstream, hidden_states, weight, totals, empty):
    rows, inputs = upstream.flatten(0, -2), hidden_states.flatten(0, -2)
    adds = [not flag.tolist() for flag in empty]
    if _behind_each_other(totals) and len(set(adds)) == 1:
        whole = totals[0].as_strided((rows.shape[1], inputs.shape[1]), (inputs.shape[1], 1))
        _add_product(whole, rows, inputs, adds[0])
    else:
        parts = rows.split([len(total) for total in totals], dim=1)
        for total, part, add in zip(totals, parts, adds, strict=True):
            _add_product(total, part, inputs, add)
    for flag in empty:
        flag.data.fill_(False)
    return upstream @ weight


@_backward.register_fake
def _(upstream, hidden_states, weight, totals, empty):
    return torch.empty_like(hidden_states)


def _behind_each_other(totals: list[Tensor]) -> bool:
    ends = [total.data_ptr() + total.numel() * total.element_size() for total in totals]
    return all(end == total.data_ptr() for end, total in zip(ends, totals[1:], strict=False))


def _add_product(total: Tensor, rows: Tensor, inputs: Tensor, add: bool) -> None:
    """total [out, in] = (total if `add`) + rows [n, out]^T inputs [n, in]."""
    total = total.data  # with a version of its own: micro-batches whose backward pass is still to come hold `total`
    left = rows.t()
    if not total.is_cuda:  # torch multiplies bf16 into fp32 on GPUs only
        product = left @ inputs
        total.add_(product) if add else total.copy_(product)
    elif add:
        torch.addmm(total, left, inputs, out_dtype=torch.float32, out=total)
    else:
        torch.mm(left, inputs, out_dtype=torch.float32, out=total)
