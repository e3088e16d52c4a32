"""Every tokenizer through one face: ids, ends, and control tokens in text that stay text."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.errors import UserError
from megasink.tokenize.control import with_rare_names
from megasink.tokenize.fast import fastest
from megasink.tokenize.tokenizers import load_tokenizer

TEXTS = ["Alice found the harbour", "", " two  spaces ", "line\n\nline", "Größe 你好 \U0001f600", "a</s>b <s> <|end|>"]


@pytest.fixture(params=["sentencepiece_model", "hugging_face_folder"])
def tokenizer(request):
    return load_tokenizer(request.getfixturevalue(request.param))


def test_round_trip(tokenizer):
    rows = tokenizer.encode_batch(TEXTS)
    assert all(row.dtype == np.int32 for row in rows)
    assert [tokenizer.decode(row) for row in rows] == TEXTS
    assert max(row.max() for row in rows if len(row)) < tokenizer.vocab_size


def test_control_tokens_in_text_stay_text(tokenizer):
    for text in ("<s>", "</s>", "<unk>", "<|begin|>", "<|end|>", "x</s>y<|end|>z"):
        (row,) = tokenizer.encode_batch([text])
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(row.tolist())
        assert len(row) > 1


def test_special_ids(sentencepiece_model, hugging_face_folder):
    sentencepiece, hugging_face = load_tokenizer(sentencepiece_model), load_tokenizer(hugging_face_folder)
    assert (sentencepiece.bos_id, sentencepiece.eos_id, sentencepiece.vocab_size) == (1, 2, 420)
    assert (hugging_face.bos_id, hugging_face.eos_id, hugging_face.vocab_size) == (0, 1, 400)
    assert len({sentencepiece.digest, hugging_face.digest}) == 2


def test_the_same_file_by_folder_or_name(hugging_face_folder):
    by_name = load_tokenizer(f"{hugging_face_folder}/tokenizer.json")
    assert by_name.digest == load_tokenizer(hugging_face_folder).digest


def test_threads_do_not_change_ids(sentencepiece_model):
    texts = TEXTS * 20
    rows = [load_tokenizer(sentencepiece_model, threads).encode_batch(texts) for threads in (1, 3)]
    assert all(np.array_equal(left, right) for left, right in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing", None, "no such file or folder"),
        ("x.model", b"not a model", "not a SentencePiece model"),
        ("x.model", b"", "not a SentencePiece model"),
        ("tokenizer.json", b"{}", "not a Hugging Face tokenizer.json"),
        ("tokenizer.json", b"\xff", "not a Hugging Face tokenizer.json"),
        ("folder/readme", b"", "holds neither"),
    ],
)
def test_what_is_not_a_tokenizer(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_tokenizer(path.parent if name.startswith("folder") else path)


def test_a_configuration_beside_it_that_is_no_object(hugging_face_folder, tmp_path):
    shutil.copy(f"{hugging_face_folder}/tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not an object"):
        load_tokenizer(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.model")
    with pytest.raises(UserError, match="not a file"):
        load_tokenizer(tmp_path / "x.model")


@pytest.fixture(scope="module", params=["sentencepiece_model", "hugging_face_folder"])
def fast_pair(request):
    """A reference tokenizer and its fast double."""
    pytest.importorskip("gigatoken")
    reference = load_tokenizer(request.getfixturevalue(request.param))
    fast, reason = fastest(reference, 2, TEXTS)
    assert reason is None and fast.library == "gigatoken"
    yield reference, fast
    fast.close()


class TestGigatoken:
    """Used only where it gives the reference's ids."""

    @settings(max_examples=100, deadline=None)
    @given(texts=st.lists(st.text(max_size=60) | st.text("ab </s>|<begnd\n▁\ue001", max_size=60), max_size=7))
    def test_ids_equal_the_reference(self, fast_pair, texts):
        reference, fast = fast_pair
        rows = zip(reference.encode_batch(texts), fast.encode_batch(texts), strict=True)
        assert all(np.array_equal(left, right) for left, right in rows)

    def test_memory_has_a_bound(self, sentencepiece_model):
        """One process takes over from another, and no text is lost between them."""
        pytest.importorskip("gigatoken")
        reference = load_tokenizer(sentencepiece_model)
        fast, _ = fastest(reference, 1, ["text"])
        children = Path(f"/proc/{fast._process.pid}/task/{fast._process.pid}/children")
        seen = set()
        for number in range(12):
            words = np.random.default_rng(number).integers(ord("a"), ord("z") + 1, (60_000, 8), dtype=np.uint8)
            texts = [" ".join(bytes(word).decode() for word in words[first::3]) for first in range(3)]
            rows = fast.encode_batch(texts)
            seen.add(children.read_text())
        assert all(np.array_equal(*pair) for pair in zip(reference.encode_batch(texts), rows, strict=True))
        assert len(seen) > 1
        fast.close()

    def test_a_process_that_dies_is_one_line(self, sentencepiece_model):
        pytest.importorskip("gigatoken")
        for kill in (os.kill, os.killpg):  # one of them, all of them
            fast, _ = fastest(load_tokenizer(sentencepiece_model), 2, ["text"])
            fast.encode_batch(["text"])  # so that there are forks
            first = fast._process.pid
            child = int(Path(f"/proc/{first}/task/{first}/children").read_text().split()[0])
            kill(child if kill is os.kill else first, signal.SIGKILL)
            with pytest.raises(UserError, match="a gigatoken process ended"):
                for _ in range(2):
                    fast.encode_batch(["a", "b", "c"])
            fast.close()

    def test_rare_names_change_nothing_but_names(self, sentencepiece_model):
        """What gigatoken reads is the same model, in which no control token can be spelled out by accident."""
        sentencepiece = pytest.importorskip("sentencepiece")
        reference = load_tokenizer(sentencepiece_model)
        content, names = with_rare_names(reference.content, reference.control_tokens)
        old, new = (sentencepiece.SentencePieceProcessor(model_proto=model) for model in (reference.content, content))
        pieces = [[model.id_to_piece(number) for number in range(len(model))] for model in (old, new)]
        renamed = dict(zip(reference.control_tokens, names, strict=True))
        assert "<s>" in renamed and not set(pieces[0]) & set(names)
        assert [renamed.get(piece, piece) for piece in pieces[0]] == pieces[1]
        assert [old.encode(text) for text in TEXTS] == [new.encode(text) for text in TEXTS]

    def test_a_vocabulary_it_does_not_take(self, tmp_path):
        pytest.importorskip("gigatoken")
        tokenizers = pytest.importorskip("tokenizers")
        path = tmp_path / "tokenizer.json"
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
        reference = load_tokenizer(path)
        chosen, reason = fastest(reference, 1, ["a b"])
        assert chosen is reference and "\n" not in reason

    def test_ids_that_differ_are_noticed(self, sentencepiece_model):
        """A reference that disagrees on one text only: the fast encoder is not used."""
        pytest.importorskip("gigatoken")
        reference = load_tokenizer(sentencepiece_model)
        encode = reference.encode_batch

        def encode_otherwise(texts: list[str]) -> list[np.ndarray]:
            return [row[1:] if text == "odd" else row for text, row in zip(texts, encode(texts), strict=True)]

        reference.encode_batch = encode_otherwise
        chosen, reason = fastest(reference, 1, ["even", "odd"])
        assert chosen is reference and "differ from sentencepiece's on 1 of" in reason
