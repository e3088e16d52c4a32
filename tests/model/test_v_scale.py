"""V-scale against its formula and float64 autograd."""

import pytest
import torch

from megasink.model.v_scale import VScale
from megasink.parallel.layout import Axis

HEADS, WIDTH, INITIAL_C = 3, 8, 4.0


def build(mode: str) -> VScale:
    module = VScale(mode, HEADS, INITIAL_C, Axis(), rows=None).double()
    if module.theta is not None:
        with torch.no_grad():
            module.theta.copy_(torch.tensor([-1.0, 0.0, 0.7]))
    return module


def formula(value: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    r = value.square().sum(-1, keepdim=True)
    return value * r / (r + INITIAL_C * theta.exp().unsqueeze(-1))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_on_equals_autograd_of_the_formula(size):
    """Value, and gradients with respect to v and theta, over small and large states."""
    module = build("on")
    value = size * torch.randn(2, 5, HEADS, WIDTH, dtype=torch.float64)
    upstream = torch.randn_like(value)
    ours = value.clone().requires_grad_()
    naive, theta = value.clone().requires_grad_(), module.theta.detach().clone().requires_grad_()
    output, expected = module(ours), formula(naive, theta)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=0)
    output.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, naive.grad, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(module.theta.grad, theta.grad, rtol=1e-10, atol=1e-15)


def test_backward_only_keeps_the_value_and_applies_the_jacobian():
    module = build("backward-only")
    value = torch.randn(2, 5, HEADS, WIDTH, dtype=torch.float64)
    ours, naive = value.clone().requires_grad_(), value.clone().requires_grad_()
    output = module(ours)
    assert torch.equal(output, value)
    assert not list(module.parameters())
    upstream = torch.randn_like(value)
    output.backward(upstream)
    formula(naive, torch.zeros(HEADS, dtype=torch.float64)).backward(upstream)
    torch.testing.assert_close(ours.grad, naive.grad, rtol=1e-11, atol=1e-15)


def test_jacobian_has_the_papers_eigenvalues():
    """phi (D-1 times) and (r^2 + 3 C r) / (r + C)^2 along v, at most 9/8."""
    module = VScale("on", 1, INITIAL_C, Axis(), rows=None).double()
    for scale in (0.1, 1.0, (3 * INITIAL_C) ** 0.5, 50.0):
        v = torch.randn(WIDTH, dtype=torch.float64)
        v *= scale / v.norm()
        jacobian = torch.autograd.functional.jacobian(lambda x: module(x.view(1, 1, 1, -1)).view(-1), v)
        r = scale**2
        eigenvalues = torch.linalg.eigvalsh(jacobian)
        phi, along = r / (r + INITIAL_C), (r * r + 3 * INITIAL_C * r) / (r + INITIAL_C) ** 2
        expected = torch.tensor(sorted([phi] * (WIDTH - 1) + [along]), dtype=torch.float64)
        torch.testing.assert_close(eigenvalues, expected, rtol=1e-10, atol=1e-12)
        assert eigenvalues.max() <= 9 / 8 + 1e-12


def test_zero_state_gives_zero_value_and_gradient():
    module = build("on")
    value = torch.zeros(1, 1, HEADS, WIDTH, dtype=torch.float64, requires_grad=True)
    output = module(value)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output)) and torch.equal(value.grad, torch.zeros_like(value))


def test_bf16_is_computed_in_fp32_and_cast_once():
    module = build("on").bfloat16()
    value = torch.randn(4, 64, HEADS, WIDTH).bfloat16()
    expected = formula(value.float(), module.theta.float()).bfloat16()
    assert torch.equal(module(value), expected)
