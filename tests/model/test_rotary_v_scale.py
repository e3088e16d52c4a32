"""RoPE and V-scale in one pass give the numbers of the two in float64, and so do their gradients and taps.

The kernels need a GPU: without one, as in CI, nothing is tested here.
"""

import pytest
import torch
from torch import Tensor

from megasink.model.rope import apply_rotary
from megasink.model.rotary_v_scale import rotate_and_scale

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
C = 3.0


def naive(packed: Tensor, cos: Tensor, sin: Tensor, groups: int, theta: Tensor | None) -> tuple[Tensor, ...]:
    """The equations, for autograd."""
    query, key, value = packed.split([packed.shape[2] - 2 * groups, groups, groups], dim=2)
    if theta is not None:
        r = value.square().sum(dim=-1, keepdim=True)
        value = value * r / (r + C * theta.exp().unsqueeze(-1))
    return apply_rotary(query, cos, sin), apply_rotary(key, cos, sin), value


def tables(*shape: int) -> tuple[Tensor, Tensor]:
    angles = torch.randn(*shape, device="cuda")
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("heads, groups, width", [(16, 16, 128), (20, 5, 64), (8, 1, 32)])
@pytest.mark.parametrize("own_positions", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_one_pass_is_rope_and_v_scale(heads, groups, width, own_positions, compiled, scaled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    batch, length = 3, 10
    packed = torch.randn(batch, length, heads + 2 * groups, width, device="cuda").bfloat16()
    packed[0, 0, -1] = 0.0  # a value state of norm 0
    cos, sin = tables(batch, length, width // 2) if own_positions else tables(length, width // 2)
    theta = [torch.randn(groups, device="cuda").bfloat16()] if scaled else []
    upstream = [torch.randn(batch, length, n, width, device="cuda").bfloat16() for n in (heads, groups, groups)]

    exact_inputs = [each.double().requires_grad_() for each in (packed, *theta)]
    exact = naive(exact_inputs[0], cos.double(), sin.double(), groups, exact_inputs[1] if scaled else None)
    gradients = torch.autograd.grad(exact, exact_inputs, [each.double() for each in upstream])
    values = packed[:, :, heads + groups :].double()

    function = torch.compile(rotate_and_scale, fullgraph=True) if compiled else rotate_and_scale
    inputs = [each.clone().requires_grad_() for each in (packed, *theta)]
    taps = [torch.empty(batch, length, groups, device="cuda", requires_grad=True) for _ in range(2)]
    found = function(inputs[0], cos, sin, groups, inputs[1] if scaled else None, C, *taps)
    ours = torch.autograd.grad(found, [*inputs, *taps], upstream)

    for each, wanted in zip((*found, ours[0]), (*exact, gradients[0]), strict=True):  # rounded once
        torch.testing.assert_close(each.double(), wanted, rtol=2**-8, atol=1e-6)
    if scaled:
        torch.testing.assert_close(ours[1].double(), gradients[1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours[-2].double(), values.square().sum(dim=-1), rtol=1e-5, atol=0.0)
    handed_on = ours[0][:, :, heads + groups :].double()  # what the tap is of: the gradient as it was rounded
    torch.testing.assert_close(ours[-1].double(), handed_on.square().sum(dim=-1), rtol=1e-5, atol=0.0)
