"""Training samples: a pure function of (shards, seq_length, seed, index)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from megasink.data.epochs import cached_document_order, digest_of, document_order
from megasink.data.indexed import IndexedDataset
from megasink.data.permutation import Permutation
from megasink.errors import UserError

_WINDOW_PIECES = 1 << 17  # pieces of documents located at once: vectorised, and small enough to forget


@dataclass(frozen=True)
class _Window:
    """`count` samples from sample `first` on: sample first + i is made of pieces[bounds[i] : bounds[i + 1]]."""

    first: int
    count: int
    bounds: list[int]
    pieces: list[slice]


class SampleSource(Protocol):
    """What the sampler reads from: `num_samples` is None where samples go on for ever."""

    seq_length: int
    num_samples: int | None

    def sample(self, index: int) -> np.ndarray:
        """int64 [seq_length + 1] tokens; raises IndexError where there is no such sample."""

    def document_ids(self, index: int) -> np.ndarray:
        """int32 [seq_length + 1]: 0 for the sample's first document, 1 for the next, and so on."""

    def prefix_of(self, index: int) -> str:
        """The `.bin/.idx` pair that the sample comes from, for messages."""


class TokenDataset:
    """Samples of seq_length + 1 tokens from a range of documents of one `.bin/.idx` pair.

    Each epoch shuffles the documents, joins them, and cuts samples that overlap by one token (the last label of one is
    the first input of the next); fewer than seq_length tokens at the epoch's end are left out. The samples of an epoch
    are permuted too. With `endless=False` (validation, test) there is one pass in the stored order and nothing wraps.

    Args:
        prefix: of the `.bin/.idx` pair, or the pair already open.
        seq_length: T, input tokens per sample.
        seed: of both shuffles.
        documents: half-open range (start, stop) of documents to use; default: all.
        endless: shuffle and go on over epochs; otherwise one ordered pass.
        first_token: id put at position 0 of every sample (BOS: a steady first token). It takes the place of the token
            that was the last label of the sample before, so every label is still seen once.
        cache_dir: folder for the epochs' document order; default: memory.

    Raises:
        UserError: damaged files, or too few tokens for one sample.
    """

    def __init__(
        self,
        prefix: str | Path | IndexedDataset,
        seq_length: int,
        seed: int = 0,
        documents: tuple[int, int] | None = None,
        endless: bool = True,
        first_token: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.indexed = prefix if isinstance(prefix, IndexedDataset) else IndexedDataset(prefix)
        self.seq_length = seq_length
        self.seed = seed
        self.first_token = first_token
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        first, last = documents or (0, len(self.indexed))
        assert 0 <= first <= last <= len(self.indexed)
        self._starts = self.indexed.document_starts[first : last + 1]
        self.num_tokens = int(self._starts[-1] - self._starts[0])
        self.samples_per_epoch = max(self.num_tokens - 1, 0) // seq_length
        if self.samples_per_epoch == 0:
            raise UserError(
                f"{self.indexed.prefix}: documents {first} to {last} hold {self.num_tokens} tokens, too few for one "
                f"sample of --seq-length {seq_length}; use more text, another --split or a shorter --seq-length"
            )
        self.num_samples = None if endless else self.samples_per_epoch
        self._layout: tuple[int, np.ndarray | None, np.ndarray] | None = None
        pieces_per_sample = 1 + seq_length * (last - first) // self.num_tokens
        self._window_size = max(1, min(4096, _WINDOW_PIECES // pieces_per_sample))
        self._window = _Window(0, 0, [], [])

    @cached_property
    def digest(self) -> str:
        """Identifies the documents: their lengths, and their tokens at 64 places (all would take minutes to read)."""
        begin, end = int(self._starts[0]), int(self._starts[-1])
        places = np.linspace(begin, max(begin, end - 256), 64).astype(np.int64)
        looked_at = [self.indexed.tokens[place : min(place + 256, end)] for place in places.tolist()]
        return digest_of(self._starts - begin, *looked_at)

    def sample(self, index: int) -> np.ndarray:
        """int64 [seq_length + 1] tokens of sample `index` >= 0."""
        tokens, pieces = self.indexed.tokens, self._pieces(index)
        if len(pieces) == 1:
            sample = tokens[pieces[0]].astype(np.int64)
        else:
            sample = np.concatenate([tokens[piece] for piece in pieces], dtype=np.int64)
        if self.first_token is not None:
            sample[0] = self.first_token
        return sample

    def document_ids(self, index: int) -> np.ndarray:
        """int32 [seq_length + 1]: 0 for the tokens of the sample's first document, 1 for the next, and so on."""
        lengths = [piece.stop - piece.start for piece in self._pieces(index) if piece.stop > piece.start]
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def prefix_of(self, index: int) -> str:
        """The pair that sample `index` comes from, for messages."""
        return self.indexed.prefix

    def _pieces(self, index: int) -> list[slice]:
        """The ranges of `indexed.tokens` that make up sample `index`, one per document."""
        window = self._window  # local: another thread may replace it
        row = index - window.first
        if not 0 <= row < window.count:
            if index < 0 or (self.num_samples is not None and index >= self.num_samples):
                raise IndexError(f"sample {index} of {self.num_samples} in {self.indexed.prefix}")
            epoch, number = divmod(index, self.samples_per_epoch)
            row = number % self._window_size
            window = self._window = self._locate(epoch, number - row)
        return window.pieces[window.bounds[row] : window.bounds[row + 1]]

    def _locate(self, epoch: int, base: int) -> _Window:
        """Where the samples base ... of an epoch's order lie in `indexed.tokens`."""
        order, ends = self._epoch_layout(epoch)
        numbers = np.arange(base, min(base + self._window_size, self.samples_per_epoch))
        if self.num_samples is None:
            numbers = Permutation(self.samples_per_epoch, "samples", self.seed, epoch)(numbers)
        first = numbers * self.seq_length  # positions within the epoch
        stop = first + self.seq_length + 1
        first_slot = np.searchsorted(ends, first, side="right")
        counts = np.searchsorted(ends, stop - 1, side="right") - first_slot + 1
        bounds = np.concatenate(([0], np.cumsum(counts)))
        slots = np.arange(bounds[-1]) + np.repeat(first_slot - bounds[:-1], counts)
        documents = slots if order is None else order[slots].astype(np.int64)
        document_stop, slot_stop = self._starts[documents + 1], ends[slots]
        slot_start = slot_stop - (document_stop - self._starts[documents])
        into_file = document_stop - slot_stop
        begins = np.maximum(slot_start, np.repeat(first, counts)) + into_file
        stops = np.minimum(slot_stop, np.repeat(stop, counts)) + into_file
        first_sample = epoch * self.samples_per_epoch + base
        return _Window(first_sample, len(numbers), bounds.tolist(), list(map(slice, begins.tolist(), stops.tolist())))

    def _epoch_layout(self, epoch: int) -> tuple[np.ndarray | None, np.ndarray]:
        """(document of each slot or None for stored order, int64 [slots] tokens of the epoch up to each slot's end)."""
        layout = self._layout
        if layout is None or (layout[0] != epoch and self.num_samples is None):
            if self.num_samples is not None:
                layout = epoch, None, self._starts[1:] - self._starts[0]
            elif self.cache_dir is None:
                layout = epoch, *document_order(self._starts, self.seed, epoch)
            else:
                layout = epoch, *cached_document_order(self._starts, self.seed, epoch, self.cache_dir, self.digest)
            self._layout = layout
        return layout[1], layout[2]
