"""Megatron's file format: what is written reads back, Megatron reads it too, and no damage passes as good."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.data.atomic import temporary_path
from megasink.data.indexed import HEADER, IndexedDataset, IndexedDatasetWriter, bin_path, idx_path
from megasink.errors import UserError


def write(prefix: Path, documents: list[list[int]], vocab_size: int) -> Path:
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def documents_below(vocab_size: int) -> st.SearchStrategy:
    return st.lists(st.lists(st.integers(0, vocab_size - 1), max_size=20), max_size=30)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from([1, 300, 65499, 65500, 2**31 - 1]))
def test_any_documents_round_trip(tmp_path_factory, data, vocab_size):
    documents = data.draw(documents_below(vocab_size))
    prefix = write(tmp_path_factory.mktemp("pair") / "p", documents, vocab_size)
    read = IndexedDataset(prefix)
    assert read.dtype == (np.uint16 if vocab_size < 65500 else np.int32)
    assert [read[number].tolist() for number in range(len(read))] == documents
    assert [path.name for path in sorted(prefix.parent.iterdir())] == ["p.bin", "p.idx"]


def test_many_documents_cross_the_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("megasink.data.indexed._CHUNK", 4)
    documents = [[number] * (number % 3) for number in range(19)]
    read = IndexedDataset(write(tmp_path / "p", documents, 100))
    assert [read[number].tolist() for number in range(len(read))] == documents


@pytest.mark.parametrize("vocab_size", [1000, 70000], ids=["u16", "i32"])
class TestMegatron:
    """Interchange with megatron-core's own reader and writer, empty documents included."""

    DOCUMENTS = ([5, 6, 7], [], [999], [0] * 40, [], [1, 2])

    def test_same_bytes(self, tmp_path, vocab_size):
        megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
        torch = pytest.importorskip("torch")
        ours = write(tmp_path / "ours", self.DOCUMENTS, vocab_size)
        dtype = megatron.DType.optimal_dtype(vocab_size)
        builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
        for document in self.DOCUMENTS:
            builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
        builder.finalize(str(tmp_path / "theirs.idx"))
        for suffix in (".bin", ".idx"):
            assert Path(f"{ours}{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()

    def test_megatron_reads_ours(self, tmp_path, vocab_size):
        megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
        read = megatron.IndexedDataset(str(write(tmp_path / "p", self.DOCUMENTS, vocab_size)))
        assert [read[number].tolist() for number in range(len(read))] == list(self.DOCUMENTS)
        assert read.document_indices.tolist() == list(range(len(self.DOCUMENTS) + 1))

    def test_we_read_documents_of_several_or_no_sequences(self, tmp_path, vocab_size):
        megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
        torch = pytest.importorskip("torch")
        builder = megatron.IndexedDatasetBuilder(
            str(tmp_path / "p.bin"), dtype=megatron.DType.optimal_dtype(vocab_size)
        )
        builder.add_document(torch.tensor([1, 2, 3, 4]), [3, 1])
        builder.end_document()  # a document without any sequence
        builder.add_document(torch.tensor([5]), [1])
        builder.finalize(str(tmp_path / "p.idx"))
        read = IndexedDataset(tmp_path / "p")
        assert [read[number].tolist() for number in range(len(read))] == [[1, 2, 3, 4], [], [5]]


@pytest.mark.parametrize(("vocab_size", "token"), [(10, 10), (10, -1), (65000, 65536 + 3), (70000, 70000)])
def test_ids_outside_the_vocabulary_are_refused_and_leave_nothing(tmp_path, vocab_size, token):
    with pytest.raises(UserError, match=f"token id {token} is outside the vocabulary of {vocab_size}"):
        write(tmp_path / "p", [[1, 2], [3, token]], vocab_size)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_the_old_pair(tmp_path):
    prefix = write(tmp_path / "p", [[1], [2]], 10)
    with pytest.raises(KeyboardInterrupt), IndexedDatasetWriter(prefix, 10) as writer:
        writer.add_document([3])
        raise KeyboardInterrupt
    assert IndexedDataset(prefix)[1].tolist() == [2]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("prefix", ["missing-folder/p", "/proc/p"])
def test_an_unwritable_folder_is_one_line(tmp_path, prefix):
    with pytest.raises(UserError, match="cannot write"):
        IndexedDatasetWriter(tmp_path / prefix, 10)


DOCUMENTS = ([1, 2, 3], [], [4], [5, 6])


def refuses(prefix: Path) -> str:
    with pytest.raises(UserError) as caught:
        IndexedDataset(prefix)
    message = str(caught.value)
    assert "\n" not in message and prefix.name in message
    return message


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_truncated_anywhere(tmp_path, suffix):
    """Every shorter length of either file, down to nothing, is refused."""
    prefix = write(tmp_path / "p", DOCUMENTS, 100)
    path = Path(f"{prefix}{suffix}")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refuses(prefix)
    path.write_bytes(whole + b"\0")
    refuses(prefix)


def test_every_flipped_bit_of_the_index(tmp_path, monkeypatch):
    """All but those in document bounds, which Megatron may set otherwise; with our manifest those too."""
    prefix = write(tmp_path / "p", DOCUMENTS, 100)
    whole = idx_path(prefix).read_bytes()
    bounds_at = HEADER.size + 12 * len(DOCUMENTS)
    write_manifest_of(prefix)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        idx_path(prefix).write_bytes(damaged)
        refuses(prefix)
        if bit // 8 < bounds_at:
            Path(f"{prefix}.json").rename(f"{prefix}.hidden")
            refuses(prefix)
            Path(f"{prefix}.hidden").rename(f"{prefix}.json")


def write_manifest_of(prefix: Path) -> None:
    from megasink.data.manifest import SCHEMA, Manifest, write_manifest

    data = IndexedDataset(prefix)
    write_manifest(
        prefix,
        Manifest(
            schema=SCHEMA,
            tokenizer="t",
            tokenizer_digest="d",
            vocab_size=100,
            bos_id=None,
            eos_id=None,
            prepend_bos=False,
            append_eod=False,
            documents=len(data),
            tokens=data.num_tokens,
        ),
    )


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"X", "MMIDIDX"),
        (9, struct.pack("<Q", 2), "version 2"),
        (17, b"\x00", "dtype code 0"),
        (17, b"\x06", "dtype code 6"),
        (17, b"\x04", "points to byte"),
        (18, struct.pack("<Q", 2**63), "describes"),
        (34, struct.pack("<i", -1), "length -1"),
        (34 + 4 * 4 + 8, struct.pack("<q", 2**60), "points to byte"),
        (34 + 12 * 4, struct.pack("<q", 1), "do not run from 0"),
        (34 + 12 * 4 + 8, struct.pack("<q", 3), "decrease"),
    ],
)
def test_each_field_has_its_message(tmp_path, at, value, words):
    prefix = write(tmp_path / "p", DOCUMENTS, 100)
    content = bytearray(idx_path(prefix).read_bytes())
    content[at : at + len(value)] = value
    idx_path(prefix).write_bytes(content)
    assert words in refuses(prefix)


def test_a_missing_half(tmp_path):
    prefix = write(tmp_path / "p", DOCUMENTS, 100)
    bin_path(prefix).unlink()
    assert "p.bin: No such file" in refuses(prefix)
    assert "make it with tools/preprocess_data.py" in refuses(tmp_path / "absent-p")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    prefix = write(tmp_path / "p", DOCUMENTS, 100)
    Path(f"{prefix}{suffix}").unlink()
    os.mkfifo(f"{prefix}{suffix}")
    assert "not a file" in refuses(prefix)


@pytest.mark.parametrize("vocab_size", [0, -5, 10**12])
def test_a_manifest_of_an_impossible_vocabulary(tmp_path, vocab_size):
    prefix = write(tmp_path / "p", DOCUMENTS, 100)
    write_manifest_of(prefix)
    path = Path(f"{prefix}.json")
    path.write_text(path.read_text().replace('"vocab_size": 100', f'"vocab_size": {vocab_size}'))
    assert f"vocab_size {vocab_size}: damaged manifest" in refuses(prefix)


def test_a_manifest_of_other_files(tmp_path):
    write_manifest_of(write(tmp_path / "p", DOCUMENTS, 100))
    assert "not their manifest" in refuses(write(tmp_path / "p", DOCUMENTS[:2], 100))


def test_the_suffix_may_be_given(tmp_path):
    write(tmp_path / "p", DOCUMENTS, 100)
    assert len(IndexedDataset(tmp_path / "p.bin")) == len(IndexedDataset(f"{tmp_path}/p.idx")) == 4


def test_temporary_names_are_of_one_process_on_one_node(tmp_path):
    """Containers of two nodes often have the same process ids."""
    first, second = (temporary_path(tmp_path / "cache.npy") for _ in range(2))
    assert first != second and first.parent == second.parent == tmp_path
