"""SwiGLU of a packed product against its formula under autograd."""

import pytest
import torch
import torch.nn.functional as F

from megasink.model.swiglu import swiglu


def check(device: str, dtype: torch.dtype, rtol: float) -> None:
    packed = torch.randn(3, 5, 2 * 1100, dtype=torch.float64)
    upstream = torch.randn(3, 5, 1100, dtype=torch.float64)
    naive = packed.to(dtype).double().requires_grad_()
    gate, up = naive.chunk(2, dim=-1)
    (F.silu(gate) * up).backward(upstream.to(dtype).double())
    ours = packed.to(device, dtype).requires_grad_()
    swiglu(ours).backward(upstream.to(device, dtype))
    error = (ours.grad.cpu().double() - naive.grad).norm() / naive.grad.norm()
    assert error < rtol


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_gradient_equals_autograd(dtype, rtol):
    check("cpu", dtype, rtol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_kernel_equals_autograd(dtype, rtol):
    """The Triton kernel, with a width that is no multiple of its block."""
    check("cuda", dtype, rtol)
