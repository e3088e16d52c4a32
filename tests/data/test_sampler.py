"""The global batch is the same samples whatever the ranks and micro-batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.data.dataset import TokenDataset
from megasink.data.sampler import global_batch
from megasink.errors import UserError
from tests.data.shards import write_shards


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return TokenDataset(write_shards(tmp_path_factory.mktemp("pair") / "p", [31, 50, 12, 7, 44]), 4, seed=1)


@settings(max_examples=50, deadline=None)
@given(micro=st.integers(1, 4), ranks=st.integers(1, 6), steps=st.integers(1, 3), consumed=st.integers(0, 200))
def test_ranks_partition_the_samples(dataset, micro, ranks, steps, consumed):
    size = micro * ranks * steps
    parts = [global_batch(dataset, consumed, size, micro, rank, ranks) for rank in range(ranks)]
    assert all(part.shape == (steps, micro, 5) and part.dtype == np.int64 for part in parts)
    together = np.concatenate([part.reshape(-1, 5) for part in parts])
    assert together.tolist() == [dataset.sample(index).tolist() for index in range(consumed, consumed + size)]


def test_going_on_with_another_batch_and_other_ranks(dataset):
    """Resume needs only the consumed samples: two 12s on 3 ranks, then 8s on 2, are one 40 on 1."""
    read = [global_batch(dataset, at, 12, 2, rank, 3).reshape(-1, 5) for at in (0, 12) for rank in range(3)]
    read += [global_batch(dataset, at, 8, 4, rank, 2).reshape(-1, 5) for at in (24, 32) for rank in range(2)]
    assert np.array_equal(np.concatenate(read), global_batch(dataset, 0, 40, 40, 0, 1)[0])


def test_sizes_that_do_not_divide(dataset):
    with pytest.raises(UserError, match=r"--global-batch-size 10 is not a multiple of --micro-batch-size 2 x 3"):
        global_batch(dataset, 0, 10, 2, 0, 3)


def test_validation_never_wraps(tmp_path):
    valid = TokenDataset(write_shards(tmp_path / "p", [41]), 4, endless=False)
    assert global_batch(valid, 8, 2, 1, 0, 1).shape == (2, 1, 5)
    with pytest.raises(UserError, match="samples 8 to 11, but the split holds 10"):
        global_batch(valid, 8, 3, 1, 0, 1)
