"""The fused bf16 step: what replicas add up is what one process accumulates."""

import pytest

from tests.helpers.jobs import metrics, train, write_tokens


def test_two_replicas_sum_their_gradients_as_exactly_as_one_process_accumulates_them(tmp_path):
    """Eight micro-batches, or four on each of two ranks: fp32 sums (DeepSpeed's, in bf16, are 5e-5 off)."""
    flags = ["--data-path", write_tokens(tmp_path / "tokens"), "--train-iters", 1, "--precision", "bf16"]
    flags += ["--micro-batch-size", 1, "--global-batch-size", 8]
    norms = []
    for ranks in (1, 2):
        train(*flags, "--save", tmp_path / f"{ranks}", ranks=ranks)
        norms.append(metrics(tmp_path / f"{ranks}")[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=5e-7)
