"""Lines and bytes of plain, gzip and zstd files with bounded memory; a truncated archive is an error, not an end."""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from megasink.errors import UserError

MAX_WINDOW = 1 << 31  # zstd --long=31
MAX_DOCUMENT_BYTES = 1 << 30  # a line or text file above this is a mistake, and would not fit in memory
_CHUNK = 1 << 17


class InputStream:
    """A readable file with its decompression; `consumed` counts bytes of the file itself, for progress."""

    def __init__(self, path: str, compression: str) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", _CHUNK)  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise UserError(f"--input {path}: {error.strerror}") from None
        self._stream: BinaryIO = self._file
        if compression != "none" and os.fstat(self._file.fileno()).st_size == 0:  # which gzip takes for a whole archive
            raise UserError(f"--input {path}: 0 bytes, not even an empty archive has so few; fetch it again")
        if compression == "gz":
            self._stream = io.BufferedReader(gzip.GzipFile(fileobj=self._file), _CHUNK)
        elif compression == "zst":
            self._stream = io.BufferedReader(_ZstdReader(self._file), _CHUNK)

    @property
    def consumed(self) -> int:
        return self._file.tell()

    def __enter__(self) -> "InputStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_document(self) -> bytes:
        """The whole content."""
        with self._named_errors():
            content = self._stream.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"{self.path}: a text file is one document, and this one is over 1 GiB; convert it to JSONL"
            )
        return content

    def lines(self, start: int, stop: int | None, size: int) -> Iterator[tuple[int, bytes]]:
        """(byte offset, whole lines of about `size` bytes) of the lines that begin in start..stop of the content.

        Offsets are in the uncompressed content; `start` > 0 needs an uncompressed file.
        """
        with self._named_errors():
            if start:
                self._stream.seek(start - 1)
                start = start - 1 + len(self._stream.readline(MAX_DOCUMENT_BYTES))
        while stop is None or start < stop:
            with self._named_errors():
                content = self._stream.read(size if stop is None else min(size, stop - start))
                rest = b"" if content.endswith(b"\n") else self._stream.readline(MAX_DOCUMENT_BYTES)
            if not content:
                return
            if len(rest) == MAX_DOCUMENT_BYTES:
                raise UserError(f"{self.path}: a line of over 1 GiB: not JSONL; check the file")
            yield start, content + rest
            start += len(content) + len(rest)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            raise UserError(f"{self.path}: the compressed file ends early: truncated; fetch it again") from None
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{self.path}: damaged or not what its suffix says ({error}); fetch it again") from None
        except OSError as error:
            raise UserError(f"--input {self.path}: {error.strerror or error}") from None


class _ZstdReader(io.RawIOBase):
    """zstd frames one after the other. zstandard's own reader takes a cut-off frame for the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frame = self._decompressor.decompressobj()
        self._in_frame = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready:
            chunk = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._in_frame = self._decompressor.decompressobj(), False
            chunk = chunk or self._file.read(_CHUNK // 4)
            if not chunk:
                if self._in_frame:
                    raise EOFError
                return 0
            self._in_frame = True
            self._ready = memoryview(self._frame.decompress(chunk))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def line_number(path: str, byte: int) -> int:
    """The number (from 1) of the line that begins at byte `byte` of an uncompressed file; for error messages."""
    number = 1
    with open(path, "rb") as file:
        while byte > 0 and (chunk := file.read(min(byte, 1 << 20))):
            number += chunk.count(b"\n")
            byte -= len(chunk)
    return number


def sample_bytes(path: str, size: int) -> bytes:
    """The first and last 4 KiB: tells a regenerated file from the one a run began with."""
    with open(path, "rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - 4096), os.SEEK_SET)
        return head + file.read(4096)
