"""ZeRO-3 trains as ZeRO-1 does where weights really are split and given up after use, as in models of real size."""

import numpy as np

from tests.helpers.jobs import losses, train, write_tokens
from tests.helpers.layouts import ZERO3_SPLIT


def test_split_weights_give_the_same_losses(tmp_path):
    flags = ["--data-path", write_tokens(tmp_path / "tokens"), "--train-iters", 3, "--global-batch-size", 8]
    train(*flags, "--save", tmp_path / "zero1", ranks=2)
    train(*flags, "--zero-stage", 3, "--deepspeed-config", ZERO3_SPLIT, "--save", tmp_path / "zero3", ranks=2)
    np.testing.assert_allclose(losses(tmp_path / "zero3"), losses(tmp_path / "zero1"), rtol=1e-5)
