"""The cached document order equals the computed one, whatever is in the folder and whoever fills it."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from megasink.data.dataset import TokenDataset
from megasink.data.epochs import cached_document_order, document_order
from tests.data.shards import write_shards

STARTS = np.concatenate(([0], np.cumsum(np.arange(50) % 7)))


def cached(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return cached_document_order(STARTS, 5, 2, folder, "digest")


def same(found: tuple, expected: tuple) -> bool:
    return all(
        np.array_equal(left, right) and left.dtype == right.dtype for left, right in zip(found, expected, strict=True)
    )


def test_cache_equals_memory_and_is_built_once(tmp_path):
    expected = document_order(STARTS, 5, 2)
    assert same(cached(tmp_path / "made"), expected)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert len(times) == 2
    assert same(cached(tmp_path / "made"), expected)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"x" * 500])
def test_damaged_files_are_built_again(tmp_path, damage):
    expected = document_order(STARTS, 5, 2)
    cached(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(damage)
        assert same(cached(tmp_path), expected)


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("")
    assert same(cached(tmp_path / "file" / "folder"), document_order(STARTS, 5, 2))


def test_many_processes_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.map(cached, [tmp_path] * 6)
    assert all(same(result, document_order(STARTS, 5, 2)) for result in results)
    assert len(list(tmp_path.iterdir())) == 2


def test_chunks_do_not_show(monkeypatch):
    expected = document_order(STARTS, 5, 2)
    monkeypatch.setattr("megasink.data.epochs._CHUNK", 7)
    assert same(document_order(STARTS, 5, 2), expected)


def test_regenerated_shards_do_not_meet_the_old_order(tmp_path):
    """The same prefix, another corpus: what a cache named by path gets wrong."""
    prefix = write_shards(tmp_path / "p", [3, 4, 5])
    TokenDataset(prefix, 2, cache_dir=tmp_path / "cache").sample(0)
    os.utime(f"{prefix}.idx", (0, 0))
    prefix = write_shards(tmp_path / "p", [5, 4, 3])
    again = TokenDataset(prefix, 2, cache_dir=tmp_path / "cache")
    fresh = TokenDataset(prefix, 2)
    assert all(again.sample(index).tolist() == fresh.sample(index).tolist() for index in range(20))
    assert len(list((tmp_path / "cache").iterdir())) > 2


def test_known_order():
    """A change of these breaks the resume of every run."""
    assert document_order(np.arange(9), 1234, 0)[0].tolist() == [4, 2, 7, 1, 3, 0, 5, 6]
