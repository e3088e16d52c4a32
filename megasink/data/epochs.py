"""The order of documents in an epoch, computed once and, where a folder is given, kept on disk for all ranks to map."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from megasink.data.atomic import temporary_path
from megasink.data.permutation import Permutation

_CHUNK = 1 << 20  # documents placed at once: temporary arrays stay small beside the result
_LAYOUT_VERSION = 1  # part of every file's name; raised when the order changes, so that old files are not read


def document_order(starts: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the documents that begin at `starts` (int64 [documents + 1], the last is the end).

    Returns:
        order: int32 (int64 from 2^31 documents on) [documents], the document in each slot of the epoch.
        ends: int64 [documents], tokens of the epoch up to and with each slot.
    """
    count = len(starts) - 1
    order, ends = np.empty(count, _order_dtype(count)), np.empty(count, np.int64)
    _fill(starts, seed, epoch, order, ends)
    return order, ends


def cached_document_order(
    starts: np.ndarray, seed: int, epoch: int, folder: Path, digest: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same, mapped from `folder`, which is filled first where it lacks it.

    `digest` is of `starts`, so that regenerated shards never meet an old file. Files are renamed into place whole, so
    any number of ranks and nodes may do this at once, over a shared folder or one of their own; each builds what it
    does not find. Where the folder cannot be written the arrays are in memory.
    """
    name = f"{digest}-v{_LAYOUT_VERSION}-seed{seed}-epoch{epoch}"
    paths = folder / f"{name}.order.npy", folder / f"{name}.ends.npy"
    found = _load(starts, paths)
    if found is None:
        try:
            _build_files(starts, seed, epoch, paths)
        except OSError:
            return document_order(starts, seed, epoch)
        found = _load(starts, paths)
    return found if found is not None else document_order(starts, seed, epoch)


def digest_of(*values: np.ndarray) -> str:
    """32 hexadecimal digits that identify the values."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        content = np.ascontiguousarray(value).data.cast("B")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _fill(starts: np.ndarray, seed: int, epoch: int, order: np.ndarray, ends: np.ndarray) -> None:
    permutation = Permutation(len(order), "documents", seed, epoch)
    total = 0
    for first in range(0, len(order), _CHUNK):
        documents = permutation(np.arange(first, min(first + _CHUNK, len(order))))
        part = slice(first, first + len(documents))
        order[part] = documents
        ends[part] = np.cumsum(starts[documents + 1] - starts[documents]) + total
        total = ends[part][-1]


def _order_dtype(count: int) -> np.dtype:
    return np.dtype("<i4") if count <= np.iinfo(np.int32).max else np.dtype("<i8")


def _build_files(starts: np.ndarray, seed: int, epoch: int, paths: tuple[Path, Path]) -> None:
    count = len(starts) - 1
    dtypes = (_order_dtype(count), np.dtype("<i8"))
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    temporary = [temporary_path(path) for path in paths]
    try:
        arrays = []
        for path, dtype in zip(temporary, dtypes, strict=True):
            _reserve(path, count, dtype)
            arrays.append(np.lib.format.open_memmap(path, mode="r+"))
        _fill(starts, seed, epoch, *arrays)
        for array, path, final in zip(arrays, temporary, paths, strict=True):
            array.flush()
            os.replace(path, final)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _reserve(path: Path, count: int, dtype: np.dtype) -> None:
    """An .npy file with its disk space taken: a full disk is an error here, not a SIGBUS when the map is written."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        os.posix_fallocate(file.fileno(), 0, file.tell() + count * dtype.itemsize)


def _load(starts: np.ndarray, paths: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray] | None:
    count = len(starts) - 1
    with contextlib.suppress(OSError, ValueError, EOFError):
        order, ends = (np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray) for path in paths)
        if order.shape == ends.shape == (count,) and order.dtype == _order_dtype(count) and ends.dtype == np.int64:
            return (order, ends) if ends[-1] == starts[-1] - starts[0] else None
    return None
