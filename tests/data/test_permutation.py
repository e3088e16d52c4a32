"""The computed permutation is one, for any size, and mixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.data.permutation import Permutation


@settings(deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**40))
def test_is_a_permutation(n, key):
    assert np.array_equal(np.sort(Permutation(n, "x", key)(np.arange(n))), np.arange(n))


def test_beyond_32_bits():
    n = 2**40 + 12345
    indices = np.random.default_rng(0).integers(0, n, 100_000)
    images = Permutation(n, 1)(indices)
    assert images.min() >= 0 and images.max() < n and images.max() > 2**39
    assert len(np.unique(images)) == len(np.unique(indices))


def test_one_at_a_time_equals_all_at_once():
    permutation = Permutation(1000, 3)
    assert [int(permutation(np.array(index))) for index in range(50)] == permutation(np.arange(50)).tolist()


@pytest.mark.parametrize("n", [2, 3, 5, 10, 97])
def test_every_place_is_equally_likely(n):
    """Where element 0 goes, over keys: chi-squared of a fair die, at 5 standard deviations (fixed keys, no luck)."""
    keys = 4000
    counts = np.bincount([int(Permutation(n, "fair", key)(np.array(0))) for key in range(keys)], minlength=n)
    chi_squared = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert chi_squared < (n - 1) + 5 * np.sqrt(2 * (n - 1)) + 5


def test_neighbours_part():
    """Samples that lie side by side in the text are not read side by side."""
    images = Permutation(10_000, 1)(np.arange(10_000))
    assert np.count_nonzero(np.abs(np.diff(images)) == 1) < 15  # two are expected by chance


def test_known_values():
    """A change of these breaks the resume of every run."""
    assert Permutation(10, "samples", 1234, 0)(np.arange(10)).tolist() == [3, 6, 0, 9, 2, 7, 8, 4, 5, 1]
