"""The fused bf16 step: what replicas add up is what one process accumulates."""

import pytest

from tests.helpers.jobs import losses, metrics, train, write_tokens


def test_two_replicas_sum_their_gradients_as_exactly_as_one_process_accumulates_them(tmp_path):
    """Two micro-batches, in turn or on two ranks: a sum of two fp32 numbers, so the same losses to the last bit."""
    flags = [
        "--data-path",
        write_tokens(tmp_path / "tokens"),
        "--train-iters",
        6,
        "--precision",
        "bf16",
        "--clip-grad",
        0,
    ]
    train(*flags, "--save", tmp_path / "one", ranks=1)
    train(*flags, "--save", tmp_path / "two", ranks=2)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    norms = [[record["grad_norm"] for record in metrics(tmp_path / run)] for run in ("one", "two")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
