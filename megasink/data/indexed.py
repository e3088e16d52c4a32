"""Megatron's `.bin/.idx` token files (MMIDIDX version 1): a checked memory-mapped reader and an atomic writer.

`.idx`, little-endian: magic `MMIDIDX\\0\\0` (9 bytes), version u64 = 1, dtype code u8, sequences S u64, bounds D u64
(documents + 1), then lengths i32[S] in tokens, offsets i64[S] in bytes, document bounds i64[D] in sequences.
`.bin` holds the raw tokens of all sequences one after the other.
"""

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from megasink.data.atomic import temporary_path
from megasink.data.manifest import manifest_path, read_manifest
from megasink.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
U16_VOCABULARY_LIMIT = 65500  # Megatron's rule; below it two bytes a token
_CHUNK = 1 << 20  # sequences handled at once, so that memory does not grow with the file


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """u16 where the vocabulary is below 65,500 (as in Megatron), else i32."""
    return DTYPE_CODES[8] if vocab_size < U16_VOCABULARY_LIMIT else DTYPE_CODES[4]


class IndexedDataset:
    """Documents of a `.bin/.idx` pair, read through one memory map; everything is checked when it is opened.

    Opening reads the index once, in pieces, and keeps 8 bytes a document.

    Attributes:
        tokens: [total_tokens] read-only view of the whole `.bin`, in the file's dtype.
        document_starts: int64 [documents + 1] first token of each document in `tokens`; the last is total_tokens.
        manifest: of `<prefix>.json`, or None (Megatron writes none).

    Raises:
        UserError: a missing, unreadable or damaged file; the line names the file and the fault.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix).removesuffix(".idx").removesuffix(".bin")
        path = idx_path(self.prefix)
        try:
            with _open(path) as file:
                self.dtype, num_sequences, num_bounds = _read_header(file, path)
                sequence_starts = _read_sequences(file, num_sequences, self.dtype.itemsize, path)
                self.document_starts = _read_bounds(file, num_bounds, sequence_starts, path)
        except OSError as error:
            raise _unreadable(path, error) from None
        self.tokens = self._map_tokens()
        self.manifest = read_manifest(self.prefix)
        if self.manifest is not None:
            self._check_manifest(one_sequence_each=self.document_starts is sequence_starts)

    def __len__(self) -> int:
        """Documents."""
        return len(self.document_starts) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """Tokens of one document, [length] in the file's dtype, read-only."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)} in {self.prefix}")
        return self.tokens[self.document_starts[document] : self.document_starts[document + 1]]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def _map_tokens(self) -> np.ndarray:
        path, expected = bin_path(self.prefix), int(self.document_starts[-1])
        raw = _map_file(path)
        if len(raw) != expected * self.dtype.itemsize:
            raise UserError(
                f"{path}: {len(raw)} bytes, but {idx_path(self.prefix).name} describes {expected} tokens of "
                f"{self.dtype.itemsize} bytes ({expected * self.dtype.itemsize} bytes): truncated or not its pair; "
                f"{_REMAKE}"
            )
        return raw.view(self.dtype)

    def _check_manifest(self, one_sequence_each: bool) -> None:
        """A manifest is of our own writer, which makes one sequence a document: other bounds are flipped bits."""
        expected, found = (self.manifest.documents, self.manifest.tokens), (len(self), self.num_tokens)
        if expected != found:
            raise UserError(
                f"{manifest_path(self.prefix)} is of {expected[0]} documents and {expected[1]} tokens, but the files "
                f"hold {found[0]} and {found[1]}: not their manifest; {_REMAKE}, or remove the manifest"
            )
        if not one_sequence_each:
            raise UserError(f"{idx_path(self.prefix)}: damaged: document bounds are not one sequence each; {_REMAKE}")


_REMAKE = "copy the pair again or remake it with tools/preprocess_data.py"


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: {error.strerror}; make it with tools/preprocess_data.py")


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path}: not a file; {_REMAKE}")
    return open(path, "rb")


def _map_file(path: Path) -> np.ndarray:
    """The file's bytes as a read-only uint8 ndarray over a memory map (empty files, which cannot be mapped, too)."""
    try:
        with _open(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return np.zeros(0, np.uint8)
            # a plain ndarray over mmap: np.memmap's subclass makes every slice twice as slow
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from None


def _read_header(file: BinaryIO, path: Path) -> tuple[np.dtype, int, int]:
    """(dtype, sequences, document bounds), checked against the file's size."""
    size = os.fstat(file.fileno()).st_size
    if size < HEADER.size:
        raise UserError(f"{path}: {size} bytes is too short for an index; {_REMAKE}")
    magic, version, code, num_sequences, num_bounds = HEADER.unpack(file.read(HEADER.size))
    if magic != MAGIC:
        raise UserError(f"{path}: not a Megatron index (it does not begin with MMIDIDX); {_REMAKE}")
    if version != 1:
        raise UserError(f"{path}: index version {version}, only 1 is known; {_REMAKE}")
    if code not in DTYPE_CODES or DTYPE_CODES[code].kind == "f":
        raise UserError(f"{path}: dtype code {code} is not an integer type of tokens; {_REMAKE}")
    expected = HEADER.size + 12 * num_sequences + 8 * num_bounds
    if size != expected:
        raise UserError(
            f"{path}: {size} bytes, but its header describes {num_sequences} sequences and {num_bounds} document "
            f"bounds ({expected} bytes): truncated or damaged; {_REMAKE}"
        )
    return DTYPE_CODES[code], num_sequences, num_bounds


def _read_sequences(file: BinaryIO, count: int, token_bytes: int, path: Path) -> np.ndarray:
    """int64 [S + 1] first token of each sequence and the end, after checking every length and byte offset."""
    starts = np.zeros(count + 1, np.int64)
    for first, size in _chunks(count):
        lengths = _read_array(file, HEADER.size + 4 * first, "<i4", size)
        if lengths.min() < 0:
            bad = int(np.argmax(lengths < 0))
            raise UserError(f"{path}: damaged: sequence {first + bad} has length {lengths[bad]}; {_REMAKE}")
        ends = starts[first + 1 : first + 1 + size]
        np.cumsum(lengths, dtype=np.int64, out=ends)
        ends += starts[first]
        offsets = _read_array(file, HEADER.size + 4 * count + 8 * first, "<i8", size)
        expected = starts[first : first + size] * token_bytes
        if (wrong := offsets != expected).any():
            bad = int(np.argmax(wrong))
            raise UserError(
                f"{path}: damaged: sequence {first + bad} points to byte {offsets[bad]}, expected {expected[bad]}; "
                f"{_REMAKE}"
            )
    return starts


def _read_bounds(file: BinaryIO, count: int, sequence_starts: np.ndarray, path: Path) -> np.ndarray:
    """int64 [D] first token of each document and the end; `sequence_starts` itself where each has one sequence."""
    num_sequences = len(sequence_starts) - 1
    at = HEADER.size + 12 * num_sequences
    ends = [int(_read_array(file, at + 8 * place, "<i8", 1)[0]) for place in (0, count - 1)] if count else []
    if ends != [0, num_sequences]:
        raise UserError(f"{path}: damaged: document bounds do not run from 0 to {num_sequences} sequences; {_REMAKE}")
    starts, one_each = np.empty(count, np.int64), count == num_sequences + 1
    previous = 0
    for first, size in _chunks(count):
        bounds = _read_array(file, at + 8 * first, "<i8", size)
        steps = np.diff(bounds, prepend=previous)
        if steps.min() < 0:
            raise UserError(f"{path}: damaged: document bounds decrease at {first + int(np.argmin(steps))}; {_REMAKE}")
        # rising to S, so no bound is beyond it once the last is S
        if bounds[-1] > num_sequences:
            raise UserError(f"{path}: damaged: document bounds exceed {num_sequences} sequences; {_REMAKE}")
        one_each = one_each and bool((steps[first == 0 :] == 1).all())
        starts[first : first + size] = sequence_starts[bounds]
        previous = int(bounds[-1])
    return sequence_starts if one_each else starts


def _read_array(file: BinaryIO, at: int, dtype: str, count: int) -> np.ndarray:
    file.seek(at)
    return np.fromfile(file, dtype, count)


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    """(first, size) of pieces of at most _CHUNK."""
    for first in range(0, count, _CHUNK):
        yield first, min(_CHUNK, count - first)


class IndexedDatasetWriter:
    """Writes documents, one sequence each, to `<prefix>.bin` and `.idx` under temporary names until `finish`.

    The `.idx` is renamed last and an older one is removed first, so a pair that opens is a whole pair. Memory does not
    grow with the corpus. Use as a context manager: leaving it through an exception removes what was begun.

    Raises:
        UserError: an id outside the vocabulary, an unwritable folder, a full disk.
    """

    def __init__(self, prefix: str | Path, vocab_size: int) -> None:
        if vocab_size < 1:
            raise UserError(f"vocabulary of {vocab_size} entries: a tokenizer has at least one")
        self.prefix = str(prefix)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.num_documents = 0
        self.num_tokens = 0
        self._bin_temporary = temporary_path(bin_path(prefix))
        self._idx_temporary = temporary_path(idx_path(prefix))
        try:
            self._bin = open(self._bin_temporary, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by finish or discard)
            self._idx = open(self._idx_temporary, "w+b", buffering=1 << 20)  # noqa: SIM115
            self._idx.write(bytes(HEADER.size))
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def add_document(self, tokens: np.ndarray | list[int]) -> None:
        """Append one document, [length] integers."""
        self.add_documents(np.asarray(tokens), np.array([len(tokens)]))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append several documents.

        Args:
            tokens: integers [sum of lengths], the documents one after the other.
            lengths: integers [documents].

        Raises:
            UserError: an id outside the vocabulary, a document of 2^31 tokens or more, a disk that cannot be written.
        """
        assert len(tokens) == lengths.sum()
        if len(tokens) and (tokens.max() >= self.vocab_size or tokens.min() < 0):
            bad = int(tokens[np.argmax((tokens >= self.vocab_size) | (tokens < 0))])
            raise UserError(f"token id {bad} is outside the vocabulary of {self.vocab_size} entries; check --tokenizer")
        if len(lengths) and lengths.max() > np.iinfo(np.int32).max:
            raise UserError(f"a document of {lengths.max()} tokens is longer than the format allows (2^31 - 1); cut it")
        try:
            self._bin.write(np.ascontiguousarray(tokens, self.dtype).data)
            self._idx.write(np.ascontiguousarray(lengths, "<i4").data)
        except OSError as error:
            raise self._unwritable(error) from None
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def finish(self) -> None:
        """Complete the index, flush both files to disk and give them their names. Raises UserError where that fails."""
        try:
            self._write_index_tail()
            for file in (self._bin, self._idx):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            idx_path(self.prefix).unlink(missing_ok=True)
            os.replace(self._bin_temporary, bin_path(self.prefix))
            os.replace(self._idx_temporary, idx_path(self.prefix))
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from None

    def discard(self) -> None:
        """Close and remove the temporary files; after `finish` there are none."""
        for file, path in ((self._bin, self._bin_temporary), (self._idx, self._idx_temporary)):
            with contextlib.suppress(OSError):  # a buffer that cannot be flushed: it is being thrown away
                file.close()
            path.unlink(missing_ok=True)

    def _write_index_tail(self) -> None:
        start = 0
        for first in range(0, self.num_documents, _CHUNK):
            count = min(_CHUNK, self.num_documents - first)
            self._idx.seek(HEADER.size + 4 * first)
            lengths = np.frombuffer(self._idx.read(4 * count), "<i4")
            ends = start + np.cumsum(lengths, dtype=np.int64)
            self._idx.seek(HEADER.size + 4 * self.num_documents + 8 * first)
            self._idx.write(((ends - lengths) * self.dtype.itemsize).astype("<i8").data)
            start = int(ends[-1])
        self._idx.seek(HEADER.size + 12 * self.num_documents)
        for first in range(0, self.num_documents + 1, _CHUNK):
            self._idx.write(np.arange(first, min(first + _CHUNK, self.num_documents + 1), dtype="<i8").data)
        self._idx.seek(0)
        code = next(code for code, dtype in DTYPE_CODES.items() if dtype == self.dtype)
        self._idx.write(HEADER.pack(MAGIC, 1, code, self.num_documents, self.num_documents + 1))

    def _unwritable(self, error: OSError) -> UserError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room, then go on with --resume" if full else "choose another --output-prefix"
        return UserError(f"cannot write {self.prefix}.bin and .idx: {error.strerror}; {remedy}")
