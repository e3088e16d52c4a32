"""Gradients of micro-batches are summed in fp32 without loss.

The kernel needs a GPU: without one, as in CI, only torch's own operations are tested here.
"""

import pytest
import torch

from megasink.train.gradient_sum import take_gradient


def check(device: str, size: int, add: bool) -> None:
    total = torch.randn(size + 1, device=device)
    gradient = torch.randn(size, device=device).bfloat16()
    expected = gradient.float() + (total[:size] if add else 0.0)
    beyond = total[size].item()
    take_gradient(total[:size], gradient, add, fused=True)
    assert torch.equal(total[:size], expected)
    assert total[size].item() == beyond


@pytest.mark.parametrize("add", [False, True])
def test_a_sum_is_that_of_the_widened_gradients(add):
    check("cpu", 100, add)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [1, 16, 2047, 100_000])
@pytest.mark.parametrize("add", [False, True])
def test_the_kernel_sums_as_well_and_writes_nothing_beyond(size, add):
    check("cuda", size, add)
