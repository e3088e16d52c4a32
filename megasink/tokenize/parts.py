"""One unit of work to files that are complete or absent: tokens of each split, and a record of counts."""

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from megasink.data.atomic import write_atomic
from megasink.data.indexed import IndexedDataset, IndexedDatasetWriter
from megasink.errors import UserError
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.tokenizers import Tokenizer

BATCH_BYTES = 1 << 20  # text handed to the tokenizer at once; a few such batches are the memory of a run
DIGEST_PRIME = (1 << 127) - 1
DIGEST_BASE = 0x9E3779B97F4A7C15F39CC0605CEDC835 % DIGEST_PRIME
HASH_BYTES = 16  # of a document's text: enough that no two of 10^12 documents collide


@dataclass
class Counts:
    """What became of a unit's documents; text_bytes are UTF-8 bytes of those kept, longest is in tokens.

    `digest` (hexadecimal) is the sum of hash i times DIGEST_BASE^(documents - 1 - i) modulo DIGEST_PRIME over the
    documents with text, so that units' digests join to the corpus's, wherever it was cut.
    """

    documents: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    longest: int = 0
    empty: int = 0
    bad: int = 0
    text_bytes: int = 0
    digest: str = "0"


@dataclass(frozen=True)
class Encoder:
    """Everything between a document's text and its place in an output.

    Attributes:
        before, after: int32 ids put around every document (BOS, EOS or nothing).
        splits: names of the outputs.
        shares: cumulative shares of the splits, the last 1.
        keep_hashes: write each unit's document hashes too, for de-duplication.
    """

    tokenizer: Tokenizer
    before: np.ndarray
    after: np.ndarray
    splits: tuple[str, ...]
    shares: np.ndarray
    keep_hashes: bool

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids of each document, with what surrounds it."""
        rows = self.tokenizer.encode_batch(texts)
        if len(self.before) + len(self.after) == 0:
            return rows
        return [np.concatenate((self.before, row, self.after)) for row in rows]

    def split_of(self, hashes: list[bytes]) -> np.ndarray:
        """Index of each document's split: decided by its text's hash alone, so equal documents stay together."""
        points = np.frombuffer(b"".join(hashes), "<u8")[:: HASH_BYTES // 8] / 2.0**64
        return np.minimum(np.searchsorted(self.shares, points, side="right"), len(self.splits) - 1)


@dataclass
class _Batch:
    texts: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    read: int = 0


def part_prefix(folder: Path, number: int, split: str) -> Path:
    return folder / f"{number:06d}.{split}"


def hashes_path(folder: Path, number: int, split: str) -> Path:
    return folder / f"{number:06d}.{split}.hashes"


def read_part(folder: Path, number: int, encoder: Encoder) -> Counts | None:
    """The counts of a finished unit; None where it has to be made (again)."""
    try:
        counts = TypeAdapter(Counts).validate_json((folder / f"{number:06d}.json").read_bytes())
        for split in encoder.splits:
            tokens = IndexedDataset(part_prefix(folder, number, split))
            if (len(tokens), tokens.num_tokens) != (counts.documents[split], counts.tokens[split]):
                return None
            hashes = hashes_path(folder, number, split)
            if encoder.keep_hashes and hashes.stat().st_size != HASH_BYTES * len(tokens):
                return None
    except (OSError, ValidationError, KeyError, UserError):
        return None
    return counts


def write_part(
    folder: Path,
    number: int,
    segments: list[Segment],
    reader: Reader,
    encoder: Encoder,
    executor: Executor,
    progress: Callable[[int, int, int], None],
) -> Counts:
    """Tokenize one unit into `folder`; its record is written last, so it marks the unit as finished.

    `progress` is told (input bytes, text bytes, tokens) after each batch.
    """
    counts, bad_before, digest = Counts(), reader.bad, 0
    writers = {}
    hashes: dict[str, list[bytes]] = {split: [] for split in encoder.splits}
    try:
        for split in encoder.splits:
            writers[split] = IndexedDatasetWriter(part_prefix(folder, number, split), encoder.tokenizer.vocab_size)
        for batch, rows in _encoded(_batches(reader, segments, counts), encoder, executor):
            for found in batch.hashes:
                digest = (digest * DIGEST_BASE + int.from_bytes(found, "little")) % DIGEST_PRIME
            where = encoder.split_of(batch.hashes)
            for at, split in enumerate(encoder.splits):
                chosen = np.flatnonzero(where == at)
                if len(chosen) == 0:
                    continue
                kept = [rows[row] for row in chosen]
                writers[split].add_documents(np.concatenate(kept), np.array([len(row) for row in kept]))
                if encoder.keep_hashes:
                    hashes[split] += [batch.hashes[row] for row in chosen]
            counts.longest = max(counts.longest, max(map(len, rows)))
            progress(batch.read, sum(len(text) for text in batch.texts), sum(map(len, rows)))
        for split, writer in writers.items():
            writer.finish()
            if encoder.keep_hashes:
                write_atomic(hashes_path(folder, number, split), b"".join(hashes[split]))
            counts.documents[split], counts.tokens[split] = writer.num_documents, writer.num_tokens
        counts.bad, counts.digest = reader.bad - bad_before, f"{digest:x}"
        write_atomic(folder / f"{number:06d}.json", json.dumps(dataclasses.asdict(counts)).encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; then go on with --resume") from None
    finally:
        for writer in writers.values():
            writer.discard()
    return counts


def _batches(reader: Reader, segments: list[Segment], counts: Counts) -> Iterator[_Batch]:
    """Batches of about BATCH_BYTES of text; documents without text are counted and left out."""
    batch, size = _Batch(), 0
    for segment in segments:
        for text, read in reader.documents(segment):
            batch.read += read
            if not text or text.isspace():
                counts.empty += 1
                continue
            content = text.encode("utf-8")
            batch.texts.append(text)
            batch.hashes.append(hashlib.blake2b(content, digest_size=HASH_BYTES).digest())
            counts.text_bytes += len(content)
            size += len(content)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = _Batch(), 0
    if batch.texts:
        yield batch


def _encoded(
    batches: Iterator[_Batch], encoder: Encoder, executor: Executor
) -> Iterator[tuple[_Batch, list[np.ndarray]]]:
    """Each batch with its rows, in order; the executor tokenizes while the next are read and the last is written."""
    waiting: deque = deque()
    for batch in batches:
        waiting.append((batch, executor.submit(encoder.encode, batch.texts)))
        if len(waiting) > encoder.tokenizer.num_calls + 1:  # one more, so that none waits for this thread
            first, future = waiting.popleft()
            yield first, future.result()
    for batch, future in waiting:
        yield batch, future.result()
