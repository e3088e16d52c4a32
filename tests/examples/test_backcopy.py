"""examples/reproduce/backcopy.py: the sequences are those of the Bigram-Backcopy task, as training reads them."""

import sys

import numpy as np
import pytest

from megasink.data import TokenDataset
from megasink.errors import UserError
from tests.helpers.jobs import ROOT

sys.path.insert(0, str(ROOT / "examples" / "reproduce"))

from backcopy import BOS, Backcopy, bigram_table, draw_sequences, write_backcopy

TASK = Backcopy(train_sequences=40, valid_sequences=12, triggers=3, trigger_share=0.2, concentration=4.0, seed=5)
VOCAB_SIZE = 24
T = 32


def test_after_a_trigger_the_token_before_it_comes_again_and_never_a_trigger():
    sequences = draw_sequences(TASK, bigram_table(TASK, VOCAB_SIZE), 2000, T, part=1)
    before, here, after = sequences[:, :-2], sequences[:, 1:-1], sequences[:, 2:]
    triggers = (here >= 1) & (here <= TASK.triggers)
    assert triggers.mean() > 0.1
    assert (after[triggers] == before[triggers]).all()
    assert (before[triggers] > TASK.triggers).all()


def test_after_any_other_token_frequencies_are_those_of_the_table():
    table = bigram_table(TASK, VOCAB_SIZE)
    np.testing.assert_allclose(table.sum(axis=1), [1.0] + [0.0] * 3 + [1.0] * 20)
    np.testing.assert_allclose(table[4:, 1:4], 0.2 / 3)
    sequences = draw_sequences(TASK, table, 5000, T, part=1)
    counts = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    np.add.at(counts, (sequences[:, :-1].ravel(), sequences[:, 1:].ravel()), 1)
    for token in [BOS, *range(4, VOCAB_SIZE)]:
        total = counts[token].sum()
        error = np.sqrt(table[token] * (1 - table[token]) * total)
        assert (np.abs(counts[token] - table[token] * total) <= 5 * error + 3).all()


def test_every_sample_of_training_and_validation_is_one_sequence_with_bos_first(tmp_path):
    manifest = write_backcopy(tmp_path, TASK, VOCAB_SIZE, T)
    assert (manifest["documents"], manifest["tokens"], manifest["bos_id"]) == (40, 40 * T, BOS)
    table = bigram_table(TASK, VOCAB_SIZE)
    for part, (name, count) in enumerate((("tokens_train", 40), ("tokens_valid", 12)), start=1):
        written = {row.tobytes() for row in draw_sequences(TASK, table, count, T, part)}
        dataset = TokenDataset(tmp_path / name, T, seed=1, endless=name == "tokens_train")
        for index in range(count - 1):
            sample = dataset.sample(index)
            assert sample[0] == sample[T] == BOS and BOS not in sample[1:T]
            assert sample[:T].tobytes() in written


def test_the_seed_decides_every_byte_and_parts_differ(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_backcopy(tmp_path / name, Backcopy(20, 20, seed=seed), VOCAB_SIZE, T)
    a, b, c = ((tmp_path / name / "tokens_train.bin").read_bytes() for name in "abc")
    assert a == b and a != c
    assert a != (tmp_path / "a" / "tokens_valid.bin").read_bytes()


def test_tokens_of_other_settings_are_not_taken_for_these(tmp_path):
    write_backcopy(tmp_path, TASK, VOCAB_SIZE, T)
    assert write_backcopy(tmp_path, TASK, VOCAB_SIZE, T)["documents"] == 40
    with pytest.raises(UserError, match="other settings"):
        write_backcopy(tmp_path, TASK, VOCAB_SIZE, 2 * T)


def test_settings_that_make_no_task_are_one_line():
    for task, vocab_size in ((Backcopy(1, 1, trigger_share=1.5), 64), (Backcopy(1, 1, triggers=63), 64)):
        with pytest.raises(UserError, match=r"backcopy: .* triggers"):
            bigram_table(task, vocab_size)
