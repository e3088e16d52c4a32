"""Cross entropy over padded logits, and its gradient, against torch's in float64.

The kernels need a GPU: without one, as in CI, only torch's own operations are tested here.
"""

import pytest
import torch
import torch.nn.functional as F

from megasink.parallel import cross_entropy_kernels as kernels
from megasink.parallel.cross_entropy import IGNORE_INDEX, vocab_parallel_cross_entropy
from megasink.parallel.layout import Axis


def text(vocab_size: int, columns: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [3, 7, columns], larger the further to the right, and labels, the first and the last entry among them."""
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(3, 7, columns, generator=generator) + torch.linspace(0.0, 30.0, columns)
    labels = torch.randint(vocab_size, (3, 7), generator=generator)
    labels[0, 0], labels[0, 1], labels[1, 2:5] = 0, vocab_size - 1, IGNORE_INDEX
    return logits.to(device, dtype).requires_grad_(), labels.to(device)


def check(device: str, dtype: torch.dtype, vocab_size: int, columns: int, fused: bool, tolerance: float) -> None:
    logits, labels = text(vocab_size, columns, dtype, device)
    weight = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)).to(device)

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernels_know_the_columns_of_a_rank():
    """Two shares of 5,000 columns, the second with 40 of padding, against the whole in float64."""
    logits, labels = text(9_960, 10_000, torch.float32, "cuda")
    shares = [share.detach().contiguous() for share in logits.chunk(2, dim=-1)]
    columns = [(0, 5_000), (5_000, 4_960)]
    sums, targets = zip(
        *(kernels.scores(share, labels, *where) for share, where in zip(shares, columns, strict=True)), strict=True
    )
    log_sum_exp, upstream = torch.logaddexp(*sums), torch.ones_like(sums[0])
    exact = logits.detach().double()[..., :9_960]
    torch.testing.assert_close(log_sum_exp.double(), exact.logsumexp(dim=-1), rtol=1e-6, atol=1e-5)
    wanted = exact.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(labels < 0, 0.0)
    torch.testing.assert_close((targets[0] + targets[1]).double(), wanted, rtol=1e-6, atol=0.0)

    gradients = [
        kernels.gradient(share, labels, log_sum_exp, upstream, *where)
        for share, where in zip(shares, columns, strict=True)
    ]
    one_hot = F.one_hot(labels.clamp(min=0), 9_960) * (labels >= 0).unsqueeze(-1)
    expected = F.pad(exact.softmax(dim=-1) - one_hot, (0, 40))
    torch.testing.assert_close(torch.cat(gradients, dim=-1).double(), expected, rtol=1e-4, atol=1e-7)
