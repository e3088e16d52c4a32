"""Weights that lie behind each other are used as one matrix without a copy, with the same numbers."""

import pytest
import torch

from megasink.parallel.layers import ColumnParallelLinear, fused_column_parallel, joined_weight
from megasink.parallel.layout import ParallelLayout


def layers_of(*rows: int) -> list[ColumnParallelLinear]:
    torch.manual_seed(0)
    layers = [ColumnParallelLinear(6, count, ParallelLayout()) for count in rows]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
    return layers


def flatten(layers: list[ColumnParallelLinear], between: int = 0) -> torch.Tensor:
    """Lay the weights out as DeepSpeed does, `between` elements apart."""
    flat = torch.zeros(sum(layer.weight.numel() + between for layer in layers))
    at = 0
    for layer in layers:
        part = flat[at : at + layer.weight.numel()].view(layer.weight.shape)
        part.copy_(layer.weight.detach())
        layer.weight.data = part
        at += layer.weight.numel() + between
    return flat


def outcome(layers: list[ColumnParallelLinear], joined: torch.Tensor | None) -> list[torch.Tensor]:
    torch.manual_seed(1)
    hidden_states = torch.randn(2, 5, 6, requires_grad=True)
    product = fused_column_parallel(hidden_states, layers, joined)
    weights = [layer.weight for layer in layers]
    return [product, *torch.autograd.grad(product.square().sum(), [hidden_states, *weights])]


def test_the_joined_product_and_its_gradients_are_those_of_the_copied_weights():
    layers = layers_of(4, 2, 3)
    expected = outcome(layers, None)
    flatten(layers)
    for found, wanted in zip(outcome(layers, joined_weight(layers)), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("rows", [(4,), (4, 2), (4, 2, 3)])
def test_compiled_it_is_the_same_product(rows, gradients):
    """Without gradients, as in evaluation, torch 2.11 failed on two weights and 2.13 leaves the graph."""
    layers = layers_of(*rows)
    flatten(layers)
    hidden_states = torch.randn(2, 5, 6)
    compiled = torch.compile(fused_column_parallel, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(gradients):
        product = compiled(hidden_states, layers, joined_weight(layers))
    assert torch.equal(product, fused_column_parallel(hidden_states, layers))


def test_the_view_follows_a_change_of_the_weights():
    layers = layers_of(4, 2)
    flat = flatten(layers)
    joined = joined_weight(layers)
    flat.mul_(2.0)
    assert torch.equal(joined, torch.cat([layer.weight for layer in layers]))


@pytest.mark.parametrize("between", [None, 1])
def test_weights_that_are_apart_are_not_joined(between):
    layers = layers_of(4, 2)
    if between is not None:
        flatten(layers, between)
    assert joined_weight(layers) is None


def test_weights_in_another_order_are_not_joined():
    layers = layers_of(4, 2)
    flatten(layers)
    assert joined_weight(layers[::-1]) is None
