"""Pieces of a corpus that are parsed, hashed and encoded in one go, by a thread or by another process."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import orjson

HASH_BYTES = 16  # of a document's text: enough that no two of 10^12 documents collide


class BadDocument(Exception):
    """Why a document cannot be used; `row` is its place in its block, from 0."""

    def __init__(self, reason: str, row: int = 0) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True)
class Block:
    """Consecutive documents as they were read.

    Attributes:
        content: JSON lines, or texts in UTF-8 one after the other.
        lengths: bytes of each text; None for JSON lines.
        read: bytes of the input file that this took.
        bad: "where: why" of documents that could not even be read.
        path, offset, lines_before: of JSON lines, where they were: the byte in the file, of a compressed file the lines
            before it (else None).
    """

    content: bytes
    lengths: list[int] | None = None
    read: int = 0
    bad: list[str] = field(default_factory=list)
    path: str = ""
    offset: int = 0
    lines_before: int | None = None


@dataclass(frozen=True)
class Form:
    """How documents become tokens: the key of the text in JSON, and the ids put around every document (BOS, EOS)."""

    json_key: str
    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class EncodedBlock:
    """What became of a block.

    Attributes:
        tokens: integers [sum of lengths], the documents one after the other.
        lengths: int64 [documents].
        hashes: HASH_BYTES of each document's text, one after the other.
        text_bytes: UTF-8 bytes of the documents.
        empty: documents without text, left out.
        bad: documents left out because they cannot be used.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    hashes: bytes
    text_bytes: int
    empty: int
    bad: list[BadDocument]


def parse(block: Block, json_key: str) -> Iterator[str | BadDocument]:
    """Its documents in order; blank lines are none."""
    if block.lengths is not None:
        yield from (text.decode("utf-8") for text in split(block.content, block.lengths))
        return
    for row, line in enumerate(block.content.split(b"\n")):
        if line and not line.isspace():
            try:
                yield _text_of_json(line, json_key)
            except BadDocument as bad:
                yield BadDocument(str(bad), row)


def encode_block(block: Block, form: Form, encode: Callable[[list[bytes]], list[np.ndarray]]) -> EncodedBlock:
    """Parse, hash and encode; `encode` takes texts in UTF-8 and gives their ids, int32 or uint32 [length] each."""
    texts, empty, bad = [], 0, []
    for document in parse(block, form.json_key):
        if isinstance(document, BadDocument):
            bad.append(document)
        elif not document or document.isspace():
            empty += 1
        else:
            texts.append(document.encode("utf-8"))
    rows = encode(texts)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + len(form.before) + len(form.after)
    if form.before or form.after:
        before, after = (np.array(ids, rows[0].dtype if rows else np.int32) for ids in (form.before, form.after))
        rows = [part for row in rows for part in (before, row, after)]
    return EncodedBlock(
        tokens=np.concatenate(rows) if rows else np.zeros(0, np.int32),
        lengths=lengths,
        hashes=b"".join(hashlib.blake2b(text, digest_size=HASH_BYTES).digest() for text in texts),
        text_bytes=sum(map(len, texts)),
        empty=empty,
        bad=bad,
    )


def split(content: bytes | memoryview | np.ndarray, lengths: list[int]) -> list:
    """Pieces of these lengths, one after the other."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(content[start : start + length])
        start += length
    return pieces


def decode(content: bytes) -> str:
    """UTF-8 text without NUL bytes, or BadDocument."""
    if b"\0" in content:
        raise BadDocument("holds NUL bytes: a binary file, not text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadDocument(f"not UTF-8 (byte {error.start}: {error.reason}); convert it to UTF-8") from None


def check_text(value: object, json_key: str) -> str:
    """The text itself where it can be written as UTF-8, or BadDocument."""
    if not isinstance(value, str):
        raise BadDocument(f'the value of "{json_key}" is {type(value).__name__}, not text')
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadDocument(f'the value of "{json_key}" has a lone surrogate, which is not text') from None
    return value


def _text_of_json(line: bytes, json_key: str) -> str:
    try:
        text = orjson.loads(line)[json_key]
        if isinstance(text, str):  # without lone surrogates, which orjson refuses
            return text
    except (ValueError, TypeError, LookupError):
        pass
    try:  # json takes more (NaN, huge numbers, lone surrogates in other values), and says better what is wrong
        record = json.loads(decode(line))
    except (ValueError, RecursionError) as error:
        raise BadDocument(f"not JSON ({error}); JSONL holds one object a line") from None
    if not isinstance(record, dict) or json_key not in record:
        keys = ", ".join(list(record)[:10]) if isinstance(record, dict) else type(record).__name__
        raise BadDocument(f'no key "{json_key}" (it has: {keys}); name the text\'s key with --json-key')
    return check_text(record[json_key], json_key)
