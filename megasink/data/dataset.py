"""Training samples: a pure function of (shards, seq_length, seed, index)."""

from pathlib import Path
from typing import Protocol

import numpy as np

from megasink.data.indexed import IndexedDataset
from megasink.data.permutation import Permutation
from megasink.errors import UserError

_WINDOW = 4096  # samples located at once: vectorised, and small enough to forget


class SampleSource(Protocol):
    """What the sampler reads from: `num_samples` is None where samples go on for ever."""

    seq_length: int
    num_samples: int | None

    def sample(self, index: int) -> np.ndarray: ...


class TokenDataset:
    """Samples of seq_length + 1 tokens from a range of documents of one `.bin/.idx` pair.

    Each epoch shuffles the documents, joins them, and cuts samples that overlap by one token (the last label of one is
    the first input of the next); fewer than seq_length tokens at the epoch's end are left out. The samples of an epoch
    are permuted too. With `endless=False` (validation, test) there is one pass in the stored order and nothing wraps.

    Args:
        prefix: of the `.bin/.idx` pair.
        seq_length: T, input tokens per sample.
        seed: of both shuffles.
        documents: half-open range (start, stop) of documents to use; default: all.
        endless: shuffle and go on over epochs; otherwise one ordered pass.

    Raises:
        UserError: damaged files, or too few tokens for one sample.
    """

    def __init__(
        self,
        prefix: str | Path,
        seq_length: int,
        seed: int = 0,
        documents: tuple[int, int] | None = None,
        endless: bool = True,
    ) -> None:
        self.indexed = IndexedDataset(prefix)
        self.seq_length = seq_length
        self.seed = seed
        self.documents = documents or (0, len(self.indexed))
        first, last = self.documents
        assert 0 <= first <= last <= len(self.indexed)
        starts = self.indexed.document_starts
        tokens = int(starts[last] - starts[first])
        self.samples_per_epoch = max(tokens - 1, 0) // seq_length
        if self.samples_per_epoch == 0:
            raise UserError(
                f"{prefix}: documents {first} to {last} hold {tokens} tokens, too few for one sample of "
                f"--seq-length {seq_length}; use more text, another --split or a shorter --seq-length"
            )
        self.num_samples = None if endless else self.samples_per_epoch
        self._layout: tuple[int, np.ndarray | None, np.ndarray] | None = None
        self._window: tuple[int, int, np.ndarray, np.ndarray] | None = None

    def sample(self, index: int) -> np.ndarray:
        """int64 [seq_length + 1] tokens of sample `index` >= 0."""
        out = np.empty(self.seq_length + 1, np.int64)
        tokens = self.indexed.tokens
        filled = 0
        for begin, end in self._pieces(index):
            out[filled : filled + end - begin] = tokens[begin:end]
            filled += end - begin
        return out

    def document_ids(self, index: int) -> np.ndarray:
        """int32 [seq_length + 1]: 0 for the tokens of the sample's first document, 1 for the next, and so on."""
        lengths = [end - begin for begin, end in self._pieces(index)]
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def _pieces(self, index: int) -> list[tuple[int, int]]:
        """Half-open ranges of `indexed.tokens` that make up sample `index`, one per document."""
        if index < 0 or (self.num_samples is not None and index >= self.num_samples):
            raise IndexError(f"sample {index} of {self.num_samples} in {self.indexed.prefix}")
        epoch, number = divmod(index, self.samples_per_epoch)
        order, ends = self._epoch_layout(epoch)
        begin, slot = self._locate(epoch, number, ends)
        starts = self.indexed.document_starts
        pieces, wanted = [], self.seq_length + 1
        while wanted:
            document = slot if order is None else int(order[slot])
            stop = int(starts[self.documents[0] + document + 1])
            start = stop - (int(ends[slot]) - begin)
            taken = min(stop - start, wanted)
            if taken:
                pieces.append((start, start + taken))
            begin, wanted, slot = begin + taken, wanted - taken, slot + 1
        return pieces

    def _locate(self, epoch: int, number: int, ends: np.ndarray) -> tuple[int, int]:
        """(first token within the epoch, slot of its document) of an epoch's sample `number`."""
        base = number - number % _WINDOW
        if self._window is None or self._window[:2] != (epoch, base):
            numbers = np.arange(base, min(base + _WINDOW, self.samples_per_epoch))
            if self.num_samples is None:
                numbers = Permutation(self.samples_per_epoch, "samples", self.seed, epoch)(numbers)
            begins = numbers * self.seq_length
            self._window = (epoch, base, begins, np.searchsorted(ends, begins, side="right"))
        _, _, begins, slots = self._window
        return int(begins[number - base]), int(slots[number - base])

    def _epoch_layout(self, epoch: int) -> tuple[np.ndarray | None, np.ndarray]:
        """(document of each slot or None for stored order, int64 [slots] token after each slot's end in the epoch)."""
        if self._layout is None or self._layout[0] != epoch:
            first, last = self.documents
            starts = self.indexed.document_starts[first : last + 1]
            if self.num_samples is None:
                order = Permutation(last - first, "documents", self.seed, epoch)(np.arange(last - first))
                self._layout = (epoch, order, np.cumsum(np.diff(starts)[order]))
            else:
                self._layout = (epoch, None, starts[1:] - starts[0])
        return self._layout[1], self._layout[2]
