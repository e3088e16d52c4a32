"""The norm beside the residual stream gives the numbers of RMSNorm in float64, and so do its gradients and its tap.

The kernel needs a GPU: without one, as in CI, nothing is tested here.
"""

import pytest
import torch
from torch import Tensor

from megasink.model.residual_norm import residual_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
EPSILON = 0.01


def naive(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """The equation, for autograd."""
    return weight * hidden_states * torch.rsqrt(hidden_states.square().mean(dim=-1, keepdim=True) + EPSILON)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batch, length, width", [(2, 700, 2048), (3, 5, 96), (1, 513, 5120)])
def test_both_ways_and_their_gradients_are_those_of_float64(batch, length, width, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    shape = batch, length, width
    hidden = torch.randn(shape, device="cuda") * torch.logspace(-2, 2, length, device="cuda").unsqueeze(-1)
    hidden, weight = hidden.bfloat16(), torch.randn(width, device="cuda").bfloat16()
    upstream = [torch.randn(shape, device="cuda").bfloat16() for _ in range(2)]

    exact_inputs = [each.double().requires_grad_() for each in (hidden, weight)]
    exact = naive(*exact_inputs)
    gradients = torch.autograd.grad((exact_inputs[0], exact), exact_inputs, [each.double() for each in upstream])

    function = torch.compile(residual_norm, fullgraph=True) if compiled else residual_norm
    inputs = [each.clone().requires_grad_() for each in (hidden, weight)]
    tap = torch.empty(batch, length, device="cuda", requires_grad=True)
    stream, normed = function(*inputs, EPSILON, tap)
    assert torch.equal(stream, hidden)
    torch.testing.assert_close(normed.double(), exact, rtol=2**-7, atol=0.0)  # rounded before and after the weight
    ours = torch.autograd.grad((stream, normed), [*inputs, tap], upstream)

    torch.testing.assert_close(ours[0].double(), gradients[0], rtol=2**-8, atol=1e-4)  # rounded once
    torch.testing.assert_close(ours[1].double(), gradients[1], rtol=2**-8, atol=1e-2)
    torch.testing.assert_close(ours[2].double(), upstream[1].double().square().sum(dim=-1), rtol=1e-5, atol=0.0)
