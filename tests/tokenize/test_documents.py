"""The same documents from every format, and one line for everything that is not text."""

import gzip
import io
import json
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.errors import UserError
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.plan import cut
from megasink.tokenize.sources import find_sources

TEXTS = ["first", "", "zwei\nLinien", "три \U0001f600", "a\u2028b\x85c", "last"]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def read(path, unit_bytes: int = 1 << 40, **options) -> list[str]:
    reader = Reader(**options)
    segments = [segment for unit in cut(find_sources((str(path),)), unit_bytes) for segment in unit]
    return [text for segment in segments for text, _ in reader.documents(segment)]


def table(texts: list):
    import pyarrow

    return pyarrow.table({"n": list(range(len(texts))), "text": texts})


def write_as(path, suffix: str):
    path = path / f"x{suffix}"
    if suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table(TEXTS), path, row_group_size=4)
    elif suffix in (".arrow", ".file.arrow"):
        import pyarrow

        kind = pyarrow.ipc.new_stream if suffix == ".arrow" else pyarrow.ipc.new_file
        with kind(str(path), table(TEXTS).schema) as writer:
            writer.write_table(table(TEXTS), max_chunksize=4)
    else:
        content = jsonl(TEXTS)
        if suffix.endswith(".gz"):
            content = gzip.compress(content[:30]) + gzip.compress(content[30:])  # two members
        elif suffix.endswith(".zst"):
            options = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, enable_ldm=True)
            pack = zstandard.ZstdCompressor(compression_params=options).compress
            content = pack(content[:30]) + pack(content[30:])  # two frames, the window of --long=27
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".ndjson.zst", ".parquet", ".arrow", ".file.arrow"])
def test_every_format_holds_the_same_documents(tmp_path, suffix):
    path = write_as(tmp_path, suffix)
    assert read(path) == TEXTS
    sizes = [size for _, size in Reader().documents(Segment(find_sources((str(path),))[0]))]
    assert sum(sizes) == path.stat().st_size  # the progress bar ends at its end


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    assert read(tmp_path) == ["one\ntwo\n", "three"]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=12), max_size=12), unit_bytes=st.integers(1, 60), ending=st.booleans())
def test_any_cut_reads_each_line_once(tmp_path_factory, texts, unit_bytes, ending):
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    content = jsonl(texts)
    path.write_bytes(content if ending else content.removesuffix(b"\n"))
    assert read(path, unit_bytes) == texts
    sources = find_sources((str(path),))
    sizes = [size for unit in cut(sources, unit_bytes) for segment in unit for _, size in Reader().documents(segment)]
    assert sum(sizes) <= len(content)


def test_small_files_share_a_unit(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    assert [len(unit) for unit in cut(find_sources((str(tmp_path),)), 30)] == [3, 3, 3, 1]


BAD_LINES = {
    b"{": "not JSON",
    b"[1, 2]": "no key",
    b'"text"': "no key",
    b'{"body": "x", "id": 1}': 'no key "text" (it has: body, id)',
    b'{"text": 5}': "is int, not text",
    b'{"text": null}': "is NoneType, not text",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "a\0b"}': "NUL bytes",
    b'{"text": "\\ud800"}': "lone surrogate",
    b"[" * 100_000: "not JSON",
    b'{"text": ' + b"1" * 5000 + b"}": "not JSON",
    b"PAR1\x15\x04": "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_line_is_named_or_skipped(tmp_path, line, suffix):
    path = tmp_path / f"x{suffix}"
    content = jsonl(["one", "two"]) + line + b"\n" + jsonl(["three"])
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"{path} line 3: " in str(caught.value) and BAD_LINES[line] in str(caught.value)
    assert "\n" not in str(caught.value)
    reader = Reader(skip_bad=True)
    assert [text for text, _ in reader.documents(Segment(find_sources((str(path),))[0]))] == ["one", "two", "three"]
    assert reader.bad == 1


def test_what_only_the_json_module_takes_is_read(tmp_path):
    """NaN is written by Python, pandas and others; a lone surrogate in another value hurts nobody."""
    lines = [b'{"score": NaN, "text": "one"}', b'{"id": "\\ud800", "text": "two"}', b'{"n": 1e999, "text": "three"}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    assert read(tmp_path / "x.jsonl") == ["one", "two", "three"]


def test_the_line_number_is_of_the_file_in_any_unit(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl([str(number) for number in range(20)]) + b"{\n")
    with pytest.raises(UserError, match="line 21: not JSON"):
        read(path, unit_bytes=50)


@pytest.mark.parametrize(
    ("content", "words"), [(b"a\0b", "NUL bytes"), (b"ab\xffcd", "not UTF-8"), (b"\x7fELF\0", "NUL bytes")]
)
def test_text_files_that_are_not_text(tmp_path, content, words):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "x.txt")
    assert read(tmp_path / "x.txt", skip_bad=True) == []


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_an_archive_cut_anywhere_is_refused(tmp_path, suffix):
    """Not one length passes, save where whole frames or members remain (gzip and zstd allow files of several)."""
    text = jsonl(["".join(random.Random(number).choices("abcdefgh", k=40)) for number in range(40)])
    whole = gzip.compress(text) if suffix.endswith("gz") else zstandard.ZstdCompressor().compress(text)
    path = tmp_path / f"x{suffix}"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.jsonl\.(gz|zst)"):
            read(path, skip_bad=True)
    path.write_bytes(whole)
    assert len(read(path)) == 40


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".file.arrow"])
def test_a_table_cut_anywhere_is_refused(tmp_path, suffix):
    path = write_as(tmp_path, suffix)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            found = read(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            # an Arrow stream may end after any batch; nothing else passes
            assert suffix == ".arrow" and found in (TEXTS, TEXTS[:4], [])


def test_flipped_bits_never_escape_as_anything_else(tmp_path):
    rng = random.Random(1)
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow"):
        path = write_as(tmp_path, suffix)
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            try:
                assert all(isinstance(text, str) for text in read(path))
            except UserError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(("column", "words"), [("body", 'no column "body"'), ("n", "holds int64, not text")])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_wrong_column(tmp_path, suffix, column, words):
    with pytest.raises(UserError, match=words):
        read(write_as(tmp_path, suffix), json_key=column)


def test_null_rows_are_empty(tmp_path):
    from pyarrow import parquet

    parquet.write_table(table(["a", None, "b"]), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == ["a", "", "b"]


def test_a_large_compressed_file_is_streamed(tmp_path):
    """Lines longer than any internal buffer, through many of them."""
    texts = [f"{number} " * 60_000 for number in range(3)]
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as writer:
        writer.write(jsonl(texts))
    (tmp_path / "x.jsonl.zst").write_bytes(buffer.getvalue())
    assert read(tmp_path / "x.jsonl.zst") == texts
