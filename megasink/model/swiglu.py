"""silu(gate) * up of one packed product, with a backward pass that writes the packed gradient once.

A compiler stores the gradient of `cat(gate, up)` reading its inputs once per half; the kernel here reads them once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without; only CUDA tensors need it
    triton = None


def swiglu(packed: Tensor) -> Tensor:
    """packed [..., 2F], gate then up -> silu(gate) * up [..., F]."""
    return _SwiGLU.apply(packed)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed):
        ctx.save_for_backward(packed)
        gate, up = packed.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, gradient):
        (packed,) = ctx.saved_tensors
        if not packed.is_cuda or triton is None:
            return _packed_gradient(packed, gradient)
        width = gradient.shape[-1]
        rows = gradient.numel() // width
        packed, gradient = packed.contiguous(), gradient.contiguous()
        packed_gradient = torch.empty_like(packed)
        block = 1024
        _swiglu_gradient_kernel[(rows, triton.cdiv(width, block))](
            packed, gradient, packed_gradient, width, block, num_warps=4
        )
        return packed_gradient


def _packed_gradient(packed: Tensor, gradient: Tensor) -> Tensor:
    wide = torch.promote_types(packed.dtype, torch.float32)
    gate, up = packed.to(wide).chunk(2, dim=-1)
    upstream, sigmoid = gradient.to(wide), gate.sigmoid()
    gate_gradient = upstream * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    return torch.cat((gate_gradient, upstream * gate * sigmoid), dim=-1).to(packed.dtype)


if triton is not None:

    @triton.jit
    def _swiglu_gradient_kernel(packed, gradient, packed_gradient, width, block: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * block + tl.arange(0, block)
        inside = column < width
        at = row * 2 * width + column
        gate = tl.load(packed + at, mask=inside).to(tl.float32)
        up = tl.load(packed + at + width, mask=inside).to(tl.float32)
        upstream = tl.load(gradient + row * width + column, mask=inside).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        gate_gradient = upstream * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(packed_gradient + at, gate_gradient, mask=inside)
        tl.store(packed_gradient + at + width, upstream * gate * sigmoid, mask=inside)
