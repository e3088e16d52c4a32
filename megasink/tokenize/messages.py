"""Messages between the processes that tokenize: a few byte strings each, over pipes."""

import struct
from typing import BinaryIO

import numpy as np


def send(stream: BinaryIO, *parts: bytes | np.ndarray) -> None:
    """Write one message; an array is its bytes."""
    views = [part.view(np.uint8) if isinstance(part, np.ndarray) else part for part in parts]
    stream.write(struct.pack(f"<I{len(views)}Q", len(views), *map(len, views)))
    for view in views:
        stream.write(view)
    stream.flush()


def receive(stream: BinaryIO) -> list[bytes]:
    """Read one message; EOFError if the other side is gone."""
    (count,) = struct.unpack("<I", _read(stream, 4))
    sizes = struct.unpack(f"<{count}Q", _read(stream, 8 * count))
    return [_read(stream, size) for size in sizes]


def send_texts(stream: BinaryIO, kind: bytes, texts: list[bytes]) -> None:
    """A message of texts: [kind, lengths, content]."""
    send(stream, kind, np.array([len(text) for text in texts], np.int64), b"".join(texts))


def send_ids(stream: BinaryIO, rows: list[np.ndarray]) -> None:
    """The answer to texts: [b"ids", lengths, int32 ids]."""
    lengths = np.array([len(row) for row in rows], np.int64)
    send(stream, b"ids", lengths, np.concatenate([np.zeros(0, np.int32), *(row.view(np.int32) for row in rows)]))


def _read(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
