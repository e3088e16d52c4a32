"""What the inspection tells, and that it notices what opening a pair cannot."""

import numpy as np
import pytest

from megasink.data.indexed import IndexedDataset
from megasink.errors import UserError
from megasink.tokenize.inspection import InspectConfig, inspect
from megasink.tokenize.options import PreprocessConfig
from megasink.tokenize.preprocess import preprocess


@pytest.fixture
def prefix(corpus, tmp_path, sentencepiece_model) -> str:
    prefix = str(tmp_path / "p")
    options = dict(input=(str(corpus),), tokenizer=sentencepiece_model, encoder="reference", workers=1)
    preprocess(PreprocessConfig(output_prefix=prefix, prepend_bos=True, append_eod=True, **options))
    return prefix


def overwrite(prefix: str, token: int, value: int) -> None:
    tokens = np.fromfile(f"{prefix}.bin", "<u2")
    tokens[token] = value
    tokens.tofile(f"{prefix}.bin")


def test_the_report(prefix):
    report = "\n".join(inspect(InspectConfig(prefix)))
    data = IndexedDataset(prefix)
    assert f"{len(data)} documents, {data.num_tokens} tokens, uint16" in report
    assert "left out: 2 empty, 0 bad, 0 duplicates" in report
    assert "all documents begin with BOS (1)" in report and "all documents end with EOS (2)" in report
    assert "Alice found the harbour" in report
    assert f"largest {np.diff(data.document_starts).max()}; 0 empty" in report


@pytest.mark.parametrize(
    ("token", "value", "words"), [(5, 420, "token 5 has id 420"), (0, 9, "1 of 58 documents do not")]
)
def test_damage_that_only_reading_finds(prefix, token, value, words):
    overwrite(prefix, token, value)
    with pytest.raises(UserError, match=words):
        inspect(InspectConfig(prefix))


def test_without_a_manifest(prefix, tmp_path):
    (tmp_path / "p.json").unlink()
    report = inspect(InspectConfig(prefix, samples=1, sample_tokens=3))
    first = " ".join(map(str, IndexedDataset(prefix)[0][:3]))
    assert report[-1].endswith(first)
    with pytest.raises(UserError, match="outside the vocabulary of 100"):
        inspect(InspectConfig(prefix, vocab_size=100))


@pytest.mark.parametrize("flag", ["vocab_size", "samples", "sample_tokens"])
def test_flags_that_mean_nothing(prefix, flag):
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')}"):
        inspect(InspectConfig(prefix, **{flag: 0 if flag == "vocab_size" else -1}))


def test_another_tokenizer(prefix, hugging_face_folder):
    with pytest.raises(UserError, match="not the one that made"):
        inspect(InspectConfig(prefix, tokenizer=hugging_face_folder))
