"""Datasets mixed by weights, without an index: sample i's dataset and its number there come from one small table."""

import numpy as np

from megasink.data.dataset import TokenDataset
from megasink.errors import UserError

PERIOD = 1 << 16  # samples after which the pattern repeats; weights are rounded to its 65,536ths
STREAM_SCHEMA = "megasink.stream/1"


class _Joined:
    """Several datasets read as one; what is read raises the IndexError of the subclass's `locate`."""

    datasets: list[TokenDataset]

    def sample(self, index: int) -> np.ndarray:
        """int64 [seq_length + 1] tokens of sample `index`."""
        which, number = self.locate(index)
        return self.datasets[which].sample(number)

    def document_ids(self, index: int) -> np.ndarray:
        """int32 [seq_length + 1], as in TokenDataset."""
        which, number = self.locate(index)
        return self.datasets[which].document_ids(number)

    def prefix_of(self, index: int) -> str:
        """The pair that sample `index` comes from, for messages."""
        return self.datasets[self.locate(index)[0]].indexed.prefix


class BlendedDataset(_Joined):
    """An endless mixture; after any n samples each dataset has given n times its weight, to within one or two.

    Sample i >= start is a pure function of (weights, i - start): a row of a fixed pattern says which dataset, and how
    many samples of that dataset came before within the period; `bases` are the samples each dataset gave before start.

    Args:
        datasets: one or more, of one seq_length and seed.
        weights: positive, one each.
        start, bases: where this blend took over from another (see resume.py); default: at the beginning.
        retired: samples given by datasets no longer in the blend, kept so that they can come back.
    """

    num_samples = None

    def __init__(
        self,
        datasets: list[TokenDataset],
        weights: list[float],
        start: int = 0,
        bases: list[int] | None = None,
        retired: list[dict] | None = None,
    ) -> None:
        self.datasets = datasets
        self.seq_length = datasets[0].seq_length
        self.samples_per_epoch = sum(dataset.samples_per_epoch for dataset in datasets)
        self.quotas = quotas(weights)
        self.start = start
        self.bases = bases or [0] * len(datasets)
        self.retired = retired or []
        self._which, self._number = _pattern(self.quotas)

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample number within it) of sample `index`; raises IndexError below `start`."""
        if index < self.start:
            raise IndexError(f"sample {index} lies before {self.start}, where this blend began")
        period, row = divmod(index - self.start, PERIOD)
        which = self._which[row]
        return which, self.bases[which] + period * self.quotas[which] + self._number[row]

    def given(self, consumed_samples: int) -> list[int]:
        """Samples each dataset has given when `consumed_samples` of the whole stream are consumed."""
        periods, rows = divmod(consumed_samples - self.start, PERIOD)
        counts = np.bincount(self._which[:rows], minlength=len(self.datasets)).tolist()
        return [
            base + periods * quota + count for base, quota, count in zip(self.bases, self.quotas, counts, strict=True)
        ]

    def state(self, consumed_samples: int) -> dict:
        """What a checkpoint keeps (JSON): `resume_blend` goes on from it exactly."""
        blend = [
            {"prefix": dataset.indexed.prefix, "digest": dataset.digest, "quota": quota, "base": base, "given": given}
            for dataset, quota, base, given in zip(
                self.datasets, self.quotas, self.bases, self.given(consumed_samples), strict=True
            )
        ]
        return {
            "schema": STREAM_SCHEMA,
            "consumed_samples": consumed_samples,
            "seq_length": self.seq_length,
            "seed": self.datasets[0].seed,
            "start": self.start,
            "blend": blend,
            "retired": self.retired,
        }


class ChainedDataset(_Joined):
    """Validation over several pairs: all of the first, then all of the next; weights do not matter, nothing wraps."""

    def __init__(self, datasets: list[TokenDataset]) -> None:
        self.datasets = datasets
        self.seq_length = datasets[0].seq_length
        self._ends = np.cumsum([dataset.num_samples for dataset in datasets])
        self.num_samples = int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample number within it) of sample `index`; raises IndexError where there is none."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        return which, index - (int(self._ends[which - 1]) if which else 0)


def quotas(weights: list[float]) -> list[int]:
    """Whole samples per period of each dataset, at least one each, PERIOD together."""
    if len(weights) > PERIOD:
        raise UserError(f"--data-path: {len(weights)} datasets are more than the {PERIOD} that can be mixed")
    exact = np.array(weights, np.float64) / np.sum(weights) * PERIOD
    whole = np.maximum(np.floor(exact), 1).astype(np.int64)
    while (missing := PERIOD - int(whole.sum())) > 0:
        whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    while (missing := PERIOD - int(whole.sum())) < 0:  # many datasets were raised to one sample
        largest_first = np.argsort(exact - whole, kind="stable")
        whole[largest_first[whole[largest_first] > 1][:-missing]] -= 1
    return whole.tolist()


def _pattern(counts: list[int]) -> tuple[list[int], list[int]]:
    """[PERIOD] dataset of each row, and its number within the period: each dataset's samples evenly spread."""
    which = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    number = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    order = np.argsort((number + 0.5) / np.array(counts)[which], kind="stable")
    return which[order].tolist(), number[order].tolist()
