"""One unit of work to files that are complete or absent: tokens of each split, and a record of counts."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from megasink.data.atomic import write_atomic
from megasink.data.indexed import IndexedDataset, IndexedDatasetWriter
from megasink.errors import UserError
from megasink.tokenize.blocks import HASH_BYTES, Block, EncodedBlock, Form, encode_block
from megasink.tokenize.documents import Reader
from megasink.tokenize.fast import GigatokenTokenizer
from megasink.tokenize.tokenizers import Tokenizer

DIGEST_PRIME = (1 << 127) - 1
DIGEST_BASE = 0x9E3779B97F4A7C15F39CC0605CEDC835 % DIGEST_PRIME


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
        form: what surrounds a document, and where its text is.
        splits: names of the outputs.
        shares: cumulative shares of the splits, the last 1.
        keep_hashes: write each unit's document hashes too, for de-duplication.
    """

    tokenizer: Tokenizer
    form: Form
    splits: tuple[str, ...]
    shares: np.ndarray
    keep_hashes: bool

    def encode(self, block: Block) -> EncodedBlock:
        if isinstance(self.tokenizer, GigatokenTokenizer):
            return self.tokenizer.encode_block(block, self.form)
        return encode_block(block, self.form, self._encode_texts)

    def split_of(self, hashes: bytes) -> np.ndarray:
        """int64 [documents], index of each one's split: decided by the hash alone, so equal documents stay together.

        `hashes`: HASH_BYTES of each document's text, one after the other.
        """
        points = np.frombuffer(hashes, "<u8")[:: HASH_BYTES // 8] / 2.0**64
        return np.minimum(np.searchsorted(self.shares, points, side="right"), len(self.splits) - 1)

    def _encode_texts(self, texts: list[bytes]) -> list[np.ndarray]:
        return self.tokenizer.encode_batch([text.decode("utf-8") for text in texts])


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
    encoded: Iterator[tuple[Block, EncodedBlock]],
    reader: Reader,
    encoder: Encoder,
    progress: Callable[[int, int, int], None],
) -> Counts:
    """Write one unit, given by its encoded blocks, into `folder`; its record comes last, which marks it as finished.

    `progress` is told (input bytes, text bytes, tokens) after each block.
    """
    counts, bad_before, digest = Counts(), reader.bad, 0
    writers = {}
    hashes: dict[str, list[np.ndarray]] = {split: [] for split in encoder.splits}
    try:
        for split in encoder.splits:
            writers[split] = IndexedDatasetWriter(part_prefix(folder, number, split), encoder.tokenizer.vocab_size)
        for block, made in encoded:
            reader.refuse(block, made.bad)
            digest = _continued(digest, made.hashes)
            found = np.frombuffer(made.hashes, f"V{HASH_BYTES}")
            where = encoder.split_of(made.hashes)
            for at, split in enumerate(encoder.splits):
                chosen = where == at
                tokens = made.tokens if chosen.all() else made.tokens[np.repeat(chosen, made.lengths)]
                writers[split].add_documents(tokens, made.lengths[chosen])
                if encoder.keep_hashes:
                    hashes[split].append(found[chosen])
            counts.longest = max(counts.longest, int(made.lengths.max(initial=0)))
            counts.text_bytes += made.text_bytes
            counts.empty += made.empty
            progress(block.read, made.text_bytes, len(made.tokens))
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


def _continued(digest: int, hashes: bytes) -> int:
    for at in range(0, len(hashes), HASH_BYTES):
        digest = (digest * DIGEST_BASE + int.from_bytes(hashes[at : at + HASH_BYTES], "little")) % DIGEST_PRIME
    return digest
