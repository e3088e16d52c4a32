"""Cross entropy over padded logits, and its gradient, against torch's in float64.

The kernels need a GPU: without one, as in CI, only torch's own operations are tested here.
"""

import pytest
import torch
import torch.nn.functional as F

from megasink.parallel.cross_entropy import IGNORE_INDEX, vocab_parallel_cross_entropy
from megasink.parallel.layout import Axis


def check(device: str, dtype: torch.dtype, vocab_size: int, columns: int, fused: bool, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4.0 * torch.randn(3, 7, columns, generator=generator)).to(device, dtype).requires_grad_()
    labels = torch.randint(vocab_size, (3, 7), generator=generator).to(device)
    labels[1, 2:5] = IGNORE_INDEX
    weight = torch.rand(3, 7, generator=generator).to(device)

    losses = vocab_parallel_cross_entropy(logits, labels, vocab_size, Axis(), fused)
    (gradient,) = torch.autograd.grad((losses * weight).sum(), logits)

    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact[..., :vocab_size].transpose(1, 2), labels, reduction="none")
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), exact)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("vocab_size, columns", [(100, 128), (128, 128)])
def test_the_loss_is_torchs_and_padding_has_no_probability(vocab_size, columns):
    check("cpu", torch.float32, vocab_size, columns, fused=True, tolerance=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("vocab_size, columns", [(100, 128), (8192, 8192), (10_000, 10_112), (4097, 4224)])
def test_the_kernels_give_the_same(vocab_size, columns, dtype, tolerance):
    check("cuda", dtype, vocab_size, columns, True, tolerance)
