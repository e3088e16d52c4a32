"""From the command line's words to datasets, and every wrong word answered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.data.build import build_dataset, parse_data_path, parse_split
from megasink.errors import UserError
from tests.data.shards import write_shards


def test_data_path_forms():
    assert parse_data_path(("a",)) == (None, ["a"])
    assert parse_data_path(("7",)) == (None, ["7"])  # a prefix may look like a number
    assert parse_data_path(("a", "b")) == (None, ["a", "b"])
    assert parse_data_path(("0.7", "a", "3", "b")) == ([0.7, 3.0], ["a", "b"])
    assert parse_data_path(("a.bin", "b.idx")) == (None, ["a", "b"])


@pytest.mark.parametrize(
    ("data_path", "words"),
    [
        ((), "--data-path is empty"),
        (("0.7", "a", "0.3"), "weights and prefixes in turn"),
        (("0.7", "a", "b", "0.3"), "weights and prefixes in turn"),
        (("0.7", "a", "0", "b"), "positive"),
        (("nan", "a", "1", "b"), "positive"),
        (("1", "a", "2", "a"), "named twice"),
        (("a", "./a.bin"), "named twice"),
    ],
)
def test_bad_data_paths(data_path, words):
    with pytest.raises(UserError, match=words):
        parse_data_path(data_path)


@pytest.mark.parametrize("split", ["", "1,2", "a,b,c", "1,-1,0", "0,0,0", "inf,1,1", "1,2,3,4"])
def test_bad_splits(split):
    with pytest.raises(UserError, match="give three shares"):
        parse_split(split)


@settings(deadline=None)
@given(st.integers(3, 60), st.tuples(*[st.integers(1, 999)] * 3))
def test_splits_cut_the_documents_once(tmp_path_factory, count, shares):
    prefix = write_shards(tmp_path_factory.getbasetemp() / "split", [3] * count)
    ranges, split = [], ",".join(map(str, shares))
    for which in ("train", "valid", "test"):
        try:
            dataset = build_dataset((prefix,), split, which, 1, 0)
        except UserError as error:
            assert "leaves no document" in str(error)
            continue
        part = dataset.datasets[0] if which == "train" else dataset
        ranges.append(part.num_tokens // 3)
    assert sum(ranges) == count


def test_splits_are_disjoint_text(tmp_path):
    prefix = write_shards(tmp_path / "p", [10] * 20)
    seen = []
    for which in ("train", "valid", "test"):
        dataset = build_dataset((prefix,), "5,3,2", which, 1, 0)
        count = dataset.num_samples or dataset.samples_per_epoch
        seen.append({int(token) for index in range(count) for token in dataset.sample(index)})
    assert seen[0] == set(range(100)) and seen[1] == set(range(100, 160)) and seen[2] == set(range(160, 200))


def test_split_bounds_are_exact_beyond_float32():
    """Sizes through float32 are off by one past 2^24."""

    class Documents:
        prefix = "p"

        def __len__(self):
            return 2**26 + 1

    from megasink.data.build import _documents

    bounds = [_documents(Documents(), "1,1,1", which) for which in ("train", "valid", "test")]
    assert bounds[0][0] == 0 and bounds[2][1] == 2**26 + 1
    assert bounds[0][1] == bounds[1][0] == round((2**26 + 1) / 3) and bounds[1][1] == bounds[2][0]


def test_unweighted_prefixes_mix_by_size(tmp_path):
    small, large = write_shards(tmp_path / "s", [101]), write_shards(tmp_path / "l", [301])
    blend = build_dataset((small, large), None, "train", 1, 0)
    assert np.allclose(np.array(blend.quotas) / sum(blend.quotas), [0.25, 0.75], atol=1e-4)


def test_validation_of_several_prefixes_is_all_of_each(tmp_path):
    paths = [write_shards(tmp_path / name, [21]) for name in "ab"]
    chain = build_dataset(("9", paths[0], "1", paths[1]), None, "valid", 4, 0)
    assert chain.num_samples == 10
