"""Blends keep their weights at every length and number each dataset's samples without a gap."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.data.blend import PERIOD, BlendedDataset, ChainedDataset, quotas
from megasink.data.dataset import TokenDataset
from megasink.errors import UserError
from tests.data.shards import write_shards


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_quotas_are_whole_and_close(weights):
    found = np.array(quotas(weights))
    exact = np.array(weights) / np.sum(weights) * PERIOD
    assert found.sum() == PERIOD and found.min() >= 1
    assert np.abs(found - np.maximum(exact, 1)).max() <= 1 + np.count_nonzero(exact < 1)


def test_too_many_datasets():
    with pytest.raises(UserError, match="more than"):
        quotas([1.0] * (PERIOD + 1))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return [TokenDataset(write_shards(folder / f"p{n}", [40 + n, 9], 1000 * n), 4, seed=1) for n in range(3)]


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=3), start=st.integers(0, 100))
def test_weights_hold_at_every_length(datasets, weights, start):
    blend = BlendedDataset(datasets[: len(weights)], weights, start)
    shares = np.array(weights) / np.sum(weights)
    seen = Counter()
    for count, index in enumerate(range(start, start + 3000)):
        which, number = blend.locate(index)
        assert number == seen[which]  # no gap, no repeat
        seen[which] += 1
        assert all(abs(seen[at] - shares[at] * (count + 1)) <= 2 for at in range(len(weights)))
    assert blend.given(start + 3000) == [seen[at] for at in range(len(weights))]


def test_across_the_period(datasets):
    blend = BlendedDataset(datasets, [0.5, 0.3, 0.2])
    numbers = {which: [] for which in range(3)}
    for index in range(PERIOD - 50, PERIOD + 50):
        which, number = blend.locate(index)
        numbers[which].append(number)
    for which, found in numbers.items():
        assert found == list(range(blend.given(PERIOD - 50)[which], blend.given(PERIOD + 50)[which]))
    assert blend.locate(10**15)[1] > 10**14  # far beyond 32 bits


def test_samples_come_from_where_locate_says(datasets):
    blend = BlendedDataset(datasets, [1, 1, 2])
    for index in range(40):
        which, number = blend.locate(index)
        assert blend.sample(index).tolist() == datasets[which].sample(number).tolist()
        assert blend.document_ids(index).tolist() == datasets[which].document_ids(number).tolist()


def test_a_chain_is_each_dataset_once(tmp_path):
    parts = [TokenDataset(write_shards(tmp_path / f"v{n}", [9 + 4 * n], 100 * n), 4, endless=False) for n in range(3)]
    chain = ChainedDataset(parts)
    expected = [part.sample(index).tolist() for part in parts for index in range(part.num_samples)]
    assert [chain.sample(index).tolist() for index in range(chain.num_samples)] == expected
    with pytest.raises(IndexError):
        chain.sample(chain.num_samples)
