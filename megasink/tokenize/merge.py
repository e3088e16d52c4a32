"""Finished units to the final files: the same bytes whoever made the units, in whatever order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.data.indexed import IndexedDataset, IndexedDatasetWriter, bin_path, idx_path
from megasink.data.manifest import Manifest, write_manifest
from megasink.errors import UserError
from megasink.tokenize.blocks import HASH_BYTES
from megasink.tokenize.parts import DIGEST_BASE, DIGEST_PRIME, Counts, hashes_path, part_prefix

_COPY_TOKENS = 2 << 20  # copied at once


@dataclass(frozen=True)
class Merged:
    """A split's pair in the folder of parts; `dropped` are documents left out as duplicates."""

    prefix: Path
    documents: int
    tokens: int
    dropped: int = 0


def merge_split(folder: Path, units: int, split: str, vocab_size: int, deduplicate: bool) -> Merged:
    """Join one split's parts in order into `folder`/merged.<split>.

    With `deduplicate` the first of equal documents stays, wherever in the corpus the others are.
    """
    prefix = folder / f"merged.{split}"
    if units == 1 and not deduplicate and _linked(part_prefix(folder, 0, split), prefix):
        part = IndexedDataset(prefix)
        return Merged(prefix, len(part), part.num_tokens)
    first_seen = _first_seen(folder, units, split) if deduplicate else None
    dropped = done = 0
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for number in range(units):
            part = IndexedDataset(part_prefix(folder, number, split))
            keep = None if first_seen is None else first_seen[done : done + len(part)]
            done += len(part)
            if keep is not None:
                dropped += int(len(keep) - keep.sum())
            for tokens, lengths in _copies(part, keep):
                writer.add_documents(tokens, lengths)
    return Merged(prefix, writer.num_documents, writer.num_tokens, dropped)


def publish(merged: Path, prefix: str, manifest: Manifest) -> None:
    """Move a merged pair to its final name; `.idx` goes first and comes last, so what opens is whole."""
    try:
        idx_path(prefix).unlink(missing_ok=True)
        os.replace(bin_path(merged), bin_path(prefix))
        write_manifest(prefix, manifest)
        os.replace(idx_path(merged), idx_path(prefix))
    except OSError as error:
        raise UserError(
            f"cannot write {prefix}.bin and .idx: {error.strerror}; choose another --output-prefix"
        ) from None


def input_digest(parts: list[Counts]) -> str:
    """Of the text of all documents, in order: equal for the same documents however they were stored or cut."""
    digest = 0
    for counts in parts:
        shift = pow(DIGEST_BASE, sum(counts.documents.values()), DIGEST_PRIME)
        digest = (digest * shift + int(counts.digest, 16)) % DIGEST_PRIME
    return f"{digest:032x}"


def _linked(part: Path, prefix: Path) -> bool:
    """Give the only part a second name instead of a copy; False where the file system has no such thing."""
    try:
        for path_of in (bin_path, idx_path):
            path_of(prefix).unlink(missing_ok=True)
            os.link(path_of(part), path_of(prefix))
    except OSError:
        return False
    return True


def _copies(part: IndexedDataset, keep: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, lengths) of runs of documents of bounded size; only those in `keep` (bool [documents]) where given."""
    starts = part.document_starts
    first = 0
    with open(bin_path(part.prefix), "rb") as file:  # not part.tokens: what is read of a map stays in memory
        while first < len(part):
            # as many documents as fit, at least one
            last = max(int(np.searchsorted(starts, starts[first] + _COPY_TOKENS, side="right")) - 1, first + 1)
            last = min(last, len(part))
            lengths = np.diff(starts[first : last + 1])
            tokens = np.fromfile(file, part.dtype, int(starts[last] - starts[first]))
            if keep is not None:
                chosen = keep[first:last]
                tokens, lengths = tokens[np.repeat(chosen, lengths)], lengths[chosen]
            yield tokens, lengths
            first = last


def _first_seen(folder: Path, units: int, split: str) -> np.ndarray:
    """bool [documents]: True for the first of each group of documents with equal text. 40 bytes a document."""
    content = b"".join(hashes_path(folder, number, split).read_bytes() for number in range(units))
    halves = np.frombuffer(content, "<u8").reshape(-1, HASH_BYTES // 8)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the earliest of equals first
    ordered = halves[order]
    first = np.ones(len(order), bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first
