"""Which files make a corpus: a fixed order, each file once, and an answer for everything else."""

import json
import os

import pytest

from megasink.errors import UserError
from megasink.tokenize.sources import classify, find_sources


def names(folder, *inputs: str) -> list[str]:
    return [
        os.path.relpath(source.path, folder) for source in find_sources(tuple(str(folder / name) for name in inputs))
    ]


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b.jsonl",
        "a.jsonl.gz",
        "deep/er/c.parquet",
        "deep/d.txt.zst",
        "notes.pdf",
        ".hidden.jsonl",
        ".git/e.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_a_folder_is_its_known_files_sorted(tree):
    assert names(tree, "") == ["a.jsonl.gz", "b.jsonl", "deep/d.txt.zst", "deep/er/c.parquet"]


def test_patterns_and_order_given(tree):
    assert names(tree, "b.jsonl", "deep/**/*") == ["b.jsonl", "deep/d.txt.zst", "deep/er/c.parquet"]
    assert names(tree, "notes.pdf") == ["notes.pdf"]  # named outright


def test_formats():
    assert classify("x.jsonl") == classify("x.ndjson") == ("jsonl", "none")
    assert classify("x.json.zst") == ("jsonl", "zst")
    assert classify("x.txt.gz") == classify("x.gz") == ("text", "gz")
    assert classify("x.parquet") == ("parquet", "none")
    assert classify("x") == ("text", "none")


def test_symlink_loops_end(tree):
    (tree / "deep" / "loop").symlink_to(tree)
    assert names(tree, "") == ["a.jsonl.gz", "b.jsonl", "deep/d.txt.zst", "deep/er/c.parquet"]
    (tree / "self.jsonl").symlink_to(tree / "self.jsonl")
    with pytest.raises(UserError, match="symbolic links"):
        names(tree, "")


def test_a_link_beside_its_file_is_not_read_again(tree):
    """Folders of headers and packages have them; of two inputs the same file is a mistake (below)."""
    (tree / "b-again.jsonl").symlink_to("b.jsonl")
    (tree / "deeper").symlink_to("deep")
    assert names(tree, "") == ["a.jsonl.gz", "b-again.jsonl", "deep/d.txt.zst", "deep/er/c.parquet"]
    assert names(tree, "deep*/**/*.zst") == ["deep/d.txt.zst"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (("b.jsonl", "b.jsonl"), "the same file as"),
        (("", "deep"), "the same file as"),
        (("b.jsonl", "link.jsonl"), "the same file as"),
        (("missing.jsonl",), "No such file"),
        (("*.csv",), "matches no file"),
        (("pipe",), "not a file"),
        (("empty-folder",), "no file in this folder"),
        (("b.jsonl", "twins"), "the same data twice"),
        ((), "name at least one"),
    ],
)
def test_refused(tree, inputs, words):
    os.mkfifo(tree / "pipe")
    (tree / "link.jsonl").symlink_to("b.jsonl")
    (tree / "empty-folder").mkdir()
    (tree / "twins").mkdir()
    for name in ("x.jsonl", "x.jsonl.gz"):
        (tree / "twins" / name).write_text("")
    if inputs == ("", "deep"):
        (tree / "pipe").unlink()
        (tree / "link.jsonl").unlink()
        (tree / "twins" / "x.jsonl.gz").unlink()
    with pytest.raises(UserError, match=words):
        names(tree, *inputs)


def test_a_dataset_saved_by_datasets_is_read_in_its_order(tmp_path):
    for name in ("data-1.arrow", "data-0.arrow", "cache-abc.arrow"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]})
    )
    assert names(tmp_path, "") == ["data-0.arrow", "data-1.arrow"]
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"damaged state\.json"):
        names(tmp_path, "")


def test_several_splits_of_a_dataset_are_not_mixed(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match="name one of its folders"):
        names(tmp_path, "")
