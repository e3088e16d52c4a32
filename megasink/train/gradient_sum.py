"""One parameter's gradient into its fp32 sum.

torch's own kernels between two dtypes reach a third of the memory bandwidth, and a compiled function is compiled for
each size and checks its guards at each call.
"""

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without; only CUDA tensors need it
    triton = None

_BLOCK = 2048


def take_gradient(total: Tensor, gradient: Tensor, add: bool, fused: bool) -> None:
    """total += gradient, or total = gradient without `add`; both contiguous [n], `total` fp32. `fused`: by a kernel of
    ours where there is a GPU."""
    if fused and total.is_cuda and triton is not None:
        size = total.numel()
        _take_gradient_kernel[(triton.cdiv(size, _BLOCK),)](total, gradient, size, add, _BLOCK, num_warps=8)
    elif add:
        total.add_(gradient)
    else:
        total.copy_(gradient)


if triton is not None:

    @triton.jit
    def _take_gradient_kernel(total, gradient, size, add: tl.constexpr, block: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = at < size
        result = tl.load(gradient + at, mask=inside).to(tl.float32)
        if add:
            result += tl.load(total + at, mask=inside)
        tl.store(total + at, result, mask=inside)
