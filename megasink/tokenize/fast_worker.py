"""A process that encodes with gigatoken, whose encoders hold Python's lock: threads of one process would take turns.

It imports nothing of megasink, to start quickly. The first message on stdin is b"sentencepiece" or b"tokenizer.json",
the next the tokenizer's file; one message answers, empty or why it cannot be used. Then each message of texts is
answered by one of ids, until stdin ends (also when the parent is killed). A message is its length as u64, then its
bytes.

An encoder remembers every word it has met, without bound, and gives no memory back when it goes. So a fork of the
process that has loaded it does the work, until it has grown by _MEMORY; then the next fork takes over, in milliseconds.
"""

import gc
import itertools
import os
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

_MEMORY = 24 << 20  # bytes; its table doubles now and then, and a run with two workers is to stay below 300 MB
_GROWN = 3  # exit code of a fork that hands over


def send(stream: BinaryIO, *parts: bytes | memoryview) -> None:
    """Write one message."""
    stream.write(struct.pack("<Q", sum(len(part) for part in parts)))
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read one message; EOFError if the other side is gone."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    message = stream.read(struct.unpack("<Q", head)[0])
    if len(message) < struct.unpack("<Q", head)[0]:
        raise EOFError
    return message


def send_rows(stream: BinaryIO, rows: list[bytes] | list[np.ndarray], item_bytes: int) -> None:
    """One message of the number of rows, their lengths in items (u32), and their items one after the other."""
    lengths = np.array([len(rows), *map(len, rows)], "<u4")
    content = b"".join(rows) if item_bytes == 1 else np.concatenate([np.zeros(0, "<i4"), *rows]).data.cast("B")
    send(stream, lengths.data.cast("B"), content)


def receive_rows(stream: BinaryIO, item_bytes: int) -> list[memoryview]:
    """The rows of one such message, as bytes."""
    message = memoryview(receive(stream))
    (count,) = struct.unpack_from("<I", message)
    ends = 4 * (count + 1) + item_bytes * np.cumsum(np.frombuffer(message, "<u4", count, 4), dtype=np.int64)
    bounds = [4 * (count + 1), *ends.tolist()]
    return [message[start:stop] for start, stop in itertools.pairwise(bounds)]


def main() -> None:
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    kind, content = receive(stdin), receive(stdin)
    try:
        import gigatoken

        of_sentencepiece = kind == b"sentencepiece"
        load = gigatoken.Tokenizer.from_sentencepiece if of_sentencepiece else gigatoken.Tokenizer.from_json
        encode = load(content).encode
    except ImportError:
        send(stdout, b"gigatoken is not installed (pip install gigatoken makes this several times faster)")
        return
    except Exception as error:  # from its Rust part: whatever it does not support
        reason = " ".join(str(error).split())[:120]
        send(stdout, f"gigatoken does not take this vocabulary ({reason})".encode())
        return
    send(stdout)
    limit = _resident() + _MEMORY
    gc.freeze()  # a collection would write to pages that the forks share
    while True:
        child = os.fork()
        if child == 0:
            os._exit(_serve(stdin, stdout, encode, limit))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != _GROWN:
            return


def _serve(stdin: BinaryIO, stdout: BinaryIO, encode: Callable[[bytes], np.ndarray], limit: int) -> int:
    """Answer until memory is above `limit` bytes (then _GROWN) or stdin ends. Nothing is read ahead of an answer."""
    while _resident() <= limit:
        try:
            texts = receive_rows(stdin, 1)
        except EOFError:
            return 0
        send_rows(stdout, [encode(bytes(text)).view("<i4") for text in texts], 4)
    return _GROWN


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


if __name__ == "__main__":
    main()
