"""Products add their weights' gradients to fp32 sums: each micro-batch's, whatever was there before the first.

The product into fp32 needs a GPU: without one, as in CI, a bf16 product is added, and so exactly autograd's gradient.
"""

import functools

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megasink.parallel.layers import ColumnParallelLinear, fused_column_parallel
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.main_gradient import MainGradient

ROWS, WIDTH = (16, 8, 8), 24
INPUTS = 3.0 * torch.randn(2, 2, 5, WIDTH, generator=torch.Generator().manual_seed(0)).round()
"""Of two micro-batches. Whole numbers, as the weights: products are exact in fp32, and their gradients not in bf16."""


def layers_with(totals: list[Tensor] | None, device: str = "cpu") -> list[ColumnParallelLinear]:
    torch.manual_seed(0)
    layers = []
    for place, rows in enumerate(ROWS):
        layer = ColumnParallelLinear(WIDTH, rows, ParallelLayout())
        torch.nn.init.normal_(layer.weight).data.round_()
        layers.append(layer.to(device, torch.bfloat16))
        if totals is not None:
            layer.main_gradient = MainGradient(totals[place], torch.ones((), dtype=torch.bool))
    return layers


def totals_with(between: int, device: str = "cpu") -> list[Tensor]:
    """Sums that lie `between` elements apart, full of what is to be overwritten."""
    flat = torch.full((sum(rows * WIDTH + between for rows in ROWS),), torch.nan, device=device)
    parts = flat.split([size for rows in ROWS for size in (rows * WIDTH, between)])
    return [part.view(rows, WIDTH) for part, rows in zip(parts[0::2], ROWS, strict=True)]


def train_two(layers: list[ColumnParallelLinear], product=fused_column_parallel) -> list[list[Tensor]]:
    """Two micro-batches, both forward passes first, as in a pipeline; each one's gradients of input and weights."""
    inputs = [states.to(layers[0].weight.device, torch.bfloat16).requires_grad_() for states in INPUTS]
    found = []
    for output, states in [(product(states, layers), states) for states in inputs]:
        output.square().sum().backward()
        found.append([states.grad, *(layer.weight.grad for layer in layers)])
        for layer in layers:
            layer.weight.grad = None
    return found


PRODUCTS = {
    "plain": fused_column_parallel,
    "compiled": torch.compile(fused_column_parallel, backend="aot_eager", fullgraph=True),
    "recomputed": functools.partial(checkpoint, fused_column_parallel, use_reentrant=False),
}


@pytest.mark.parametrize("between", [0, 3])
@pytest.mark.parametrize("product", PRODUCTS)
def test_sums_are_those_of_autograds_gradients_and_it_hands_on_none(between, product):
    expected = train_two(layers_with(None))
    totals = totals_with(between)
    found = train_two(layers_with(totals), PRODUCTS[product])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:] == [None] * len(ROWS)
    for place, total in enumerate(totals, start=1):
        assert torch.equal(total, expected[0][place].float() + expected[1][place].float())


def test_the_next_step_overwrites_what_is_marked_empty():
    totals = totals_with(0)
    layers = layers_with(totals)
    train_two(layers)
    once = [total.clone() for total in totals]
    for layer in layers:
        layer.main_gradient.empty.fill_(True)
    train_two(layers)
    assert all(torch.equal(total, first) for total, first in zip(totals, once, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("between", [0, 4])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_nothing_is_rounded_before_it_is_added(between, compiled):
    totals = totals_with(between, "cuda")
    product = torch.compile(fused_column_parallel, fullgraph=True) if compiled else fused_column_parallel
    train_two(layers_with(totals, "cuda"), product)
    for total, layer in zip(totals, layers_with(None), strict=True):
        states, weight = INPUTS.double().flatten(0, 2), layer.weight.double()
        assert torch.equal(total.cpu().double(), 2.0 * (states @ weight.T).T @ states)
