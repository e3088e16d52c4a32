"""The sample stream equals its definition, written out the slow way, for any documents."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megasink.data.dataset import TokenDataset
from megasink.data.epochs import document_order
from megasink.data.indexed import IndexedDataset
from megasink.errors import UserError
from tests.data.shards import write_shards

LENGTHS = [7, 1, 0, 13, 5, 22, 3, 0, 9, 11]


def slow_epoch(prefix: str, documents: tuple[int, int], seq_length: int, order: list[int]) -> list[tuple]:
    """(tokens, document ids) of each window of the joined documents, in file order of the epoch."""
    data = IndexedDataset(prefix)
    tokens = np.concatenate([data[documents[0] + number] for number in order])
    owners = np.concatenate([np.full(len(data[documents[0] + number]), slot) for slot, number in enumerate(order)])
    windows = []
    for start in range(0, (len(tokens) - 1) // seq_length * seq_length, seq_length):
        window = slice(start, start + seq_length + 1)
        windows.append((tuple(tokens[window]), tuple(np.unique(owners[window], return_inverse=True)[1])))
    return windows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=20),
    seq_length=st.integers(1, 15),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_an_epoch_is_a_permutation_of_its_windows(tmp_path_factory, lengths, seq_length, seed, epoch, data):
    first = data.draw(st.integers(0, len(lengths) - 1))
    last = data.draw(st.integers(first + 1, len(lengths)))
    assume(sum(lengths[first:last]) > seq_length)
    prefix = write_shards(tmp_path_factory.mktemp("pair") / "p", lengths)
    dataset = TokenDataset(prefix, seq_length, seed, (first, last))
    starts = IndexedDataset(prefix).document_starts[first : last + 1]
    order = document_order(starts, seed, epoch)[0].tolist()
    assert sorted(order) == list(range(last - first))
    indices = range(epoch * dataset.samples_per_epoch, (epoch + 1) * dataset.samples_per_epoch)
    found = [(tuple(dataset.sample(index)), tuple(dataset.document_ids(index))) for index in indices]
    assert sorted(found) == sorted(slow_epoch(prefix, (first, last), seq_length, order))


def test_any_order_of_reading_gives_the_same_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("megasink.data.dataset._WINDOW_PIECES", 8)  # so that windows are left and entered again
    prefix = write_shards(tmp_path / "p", LENGTHS)
    forwards = TokenDataset(prefix, 4, seed=3)
    stream = [forwards.sample(index).tolist() for index in range(60)]
    fresh = TokenDataset(prefix, 4, seed=3)
    for index in np.random.default_rng(0).permutation(60).tolist():
        assert fresh.sample(index).tolist() == stream[index]


def test_epochs_and_seeds_differ(tmp_path):
    prefix = write_shards(tmp_path / "p", LENGTHS)
    dataset = TokenDataset(prefix, 4, seed=3)
    count = dataset.samples_per_epoch
    epochs = [[tuple(dataset.sample(epoch * count + number)) for number in range(count)] for epoch in range(3)]
    other = [tuple(TokenDataset(prefix, 4, seed=4).sample(number)) for number in range(count)]
    assert len({tuple(epoch) for epoch in [*epochs, other]}) == 4


def test_samples_are_int64(tmp_path):
    sample = TokenDataset(write_shards(tmp_path / "p", LENGTHS), 4).sample(0)
    assert sample.dtype == np.int64 and sample.shape == (5,) and sample.flags.writeable


def test_validation_is_in_stored_order_and_never_wraps(tmp_path):
    prefix = write_shards(tmp_path / "p", LENGTHS)
    dataset = TokenDataset(prefix, 4, documents=(3, 9), endless=False)
    expected = [list(tokens) for tokens, _ in slow_epoch(prefix, (3, 9), 4, list(range(6)))]
    assert dataset.num_samples == len(expected)
    assert [dataset.sample(index).tolist() for index in range(len(expected))] == expected
    with pytest.raises(IndexError):
        dataset.sample(dataset.num_samples)


def test_first_token_takes_only_the_place_of_position_0(tmp_path):
    prefix = write_shards(tmp_path / "p", LENGTHS, first_token=100)
    plain, with_bos = TokenDataset(prefix, 4), TokenDataset(prefix, 4, first_token=1)
    for index in range(plain.samples_per_epoch):
        assert with_bos.sample(index)[0] == 1
        assert with_bos.sample(index)[1:].tolist() == plain.sample(index)[1:].tolist()


def test_too_few_tokens_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"hold 5 tokens, too few for one sample of --seq-length 5"):
        TokenDataset(write_shards(tmp_path / "p", [2, 3]), 5)
    with pytest.raises(UserError, match="hold 0 tokens"):
        TokenDataset(write_shards(tmp_path / "empty", []), 5)
