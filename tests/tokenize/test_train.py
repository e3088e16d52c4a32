"""The trained tokenizer loses no text, and every bad wish is one line."""

import dataclasses
import signal
import subprocess
import sys

import pytest

from megasink.errors import UserError
from megasink.tokenize.tokenizers import load_tokenizer
from megasink.tokenize.train import TrainTokenizerConfig, train_tokenizer

TERMINATED = """
import os, signal, sys
from megasink.tokenize.train import TrainTokenizerConfig, train_tokenizer

text, output = sys.argv[1:]
opened = []

def end_as_text_is_read(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
        if opened[-1].startswith(text) and any(".t.model.tmp-" in path for path in opened):
            os.kill(os.getpid(), signal.SIGTERM)

sys.addaudithook(end_as_text_is_read)
train_tokenizer(TrainTokenizerConfig(input=(text,), output=output, vocab_size=400))
"""


@pytest.fixture
def config(corpus, tmp_path) -> TrainTokenizerConfig:
    return TrainTokenizerConfig(input=(str(corpus),), output=str(tmp_path / "t"), vocab_size=400)


def test_nothing_is_lost(config):
    tokenizer = load_tokenizer(train_tokenizer(config))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (400, 1, 2)
    texts = ["Größe  zwei", " leading", "a\n\n\tb  ", "\u65e5\u672c \U0001f600", "</s>"]
    assert [tokenizer.decode(row) for row in tokenizer.encode_batch(texts)] == texts


def test_the_suffix_is_not_doubled(config, tmp_path):
    assert train_tokenizer(dataclasses.replace(config, output=str(tmp_path / "t.model"))) == tmp_path / "t.model"


def test_it_is_reproducible(config, tmp_path):
    again = dataclasses.replace(config, output=str(tmp_path / "again"))
    assert train_tokenizer(config).read_bytes() == train_tokenizer(again).read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 1_000_000}, "smaller --vocab-size or more text"),
        ({"vocab_size": 100}, "at least 300"),
        ({"output": "/proc/t"}, "cannot write"),
        ({"output": "folder/"}, "end it with a name"),
        ({"json_key": "body"}, 'no key "body"'),
        ({"input": ()}, "name at least one"),
    ],
)
def test_refused(config, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        train_tokenizer(dataclasses.replace(config, **change))
    assert list(tmp_path.glob("*.model")) == list(tmp_path.glob(".*tmp*")) == []


def test_no_text(config, corpus):
    for path in corpus.iterdir():
        path.write_text('{"text": " "}\n')
    with pytest.raises(UserError, match="nothing to train a tokenizer on"):
        train_tokenizer(config)


def test_one_that_is_ended_while_it_trains_leaves_nothing(config, tmp_path):
    (tmp_path / "made").mkdir()
    command = [sys.executable, "-c", TERMINATED, config.input[0], str(tmp_path / "made" / "t")]
    assert subprocess.run(command).returncode == -signal.SIGTERM
    assert list((tmp_path / "made").iterdir()) == []
