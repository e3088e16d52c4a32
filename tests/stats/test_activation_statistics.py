"""Median, maximum, massive activations and kurtosis of planted elements."""

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from megasink.model.activation_statistics import activation_moments, activation_order, histogram_median
from megasink.parallel.layout import Axis
from megasink.stats.measures import kurtosis

HALF_BIN = 2 ** (1 / 128) - 1


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 50.0, 3e5])
@pytest.mark.parametrize("elements", [(7, 9), (64, 33)])
def test_median_is_known_to_half_a_bin(scale, elements):
    x = torch.randn(3, *elements, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    median = activation_order(x, Axis())[:, 1]
    expected = np.median(x.abs().flatten(1).numpy(), axis=1)
    if elements == (7, 9):  # an odd number: the median is one element
        np.testing.assert_allclose(median, expected, rtol=HALF_BIN)
    else:
        np.testing.assert_allclose(median, expected, rtol=HALF_BIN + 1e-3)


def test_zeros_and_whole_bins_do_not_break_the_median():
    assert activation_order(torch.zeros(1, 4, 4), Axis())[0, 1] < 1e-11
    histogram = torch.zeros(1, 4096)
    histogram[0, 100], histogram[0, 200] = 5.0, 5.0
    between = [2.0 ** (-40 + (place + 0.5) / 64) for place in (100, 200)]
    assert histogram_median(histogram).item() == pytest.approx(sum(between) / 2)


@pytest.mark.parametrize(("planted", "massive"), [(1500.0, 1), (900.0, 0), (-1500.0, 1)])
def test_massive_activations_pass_both_thresholds(planted, massive):
    """|a| > 100 and > 1000 medians; the median here is 1."""
    x = torch.ones(2, 16, 8)
    x[0, 3, 2] = planted
    largest, _, count = activation_order(x, Axis())[0]
    assert largest == abs(planted) and count == massive
    assert activation_order(x * 0.05, Axis())[0, 2] == 0  # 75 is not above 100
    assert activation_order(x, Axis())[1, 2] == 0


def test_moments_add_up_to_kurtosis():
    x = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7
    whole = activation_moments(x).sum(dim=0)
    central, raw = kurtosis(whole, x.numel())
    centred = x - x.mean()
    torch.testing.assert_close(central, centred.pow(4).mean() / centred.square().mean() ** 2)
    torch.testing.assert_close(raw, x.pow(4).mean() / x.square().mean() ** 2)
    assert 2.5 < central < 3.5  # a normal's is 3


def test_no_sum_takes_a_whole_sequence_at_once():
    """With as many sequences as columns torch 2.11 could not compile such sums for a GPU. CI has no GPU's kernels;
    tests/long/compile_for_gpu.py makes them."""
    summed = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket is torch.ops.aten.sum:
                summed.append((args[0].dim(), args[1]))
            return function(*args, **(kwargs or {}))

    hidden_states = torch.randn(2, 3, 4)
    with Watch():
        activation_moments(hidden_states)
        activation_order(hidden_states, Axis())
    assert summed == [(3, [2]), (2, [1])] * 5  # four powers, and the massive ones


def test_what_is_compiled_does_not_grow_with_the_sequences():
    """Unrolled over a thousand short sequences, a block's full statistics took a minute to compile."""

    def nodes(sequences: int) -> int:
        graph = make_fx(lambda states: activation_order(states, Axis()))(torch.randn(sequences, 3, 4))
        return len(graph.graph.nodes)

    assert nodes(16) == nodes(2)
