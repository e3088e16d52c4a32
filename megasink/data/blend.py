"""Datasets mixed by weights, without an index: sample i's dataset and its number there come from one small table."""

import numpy as np

from megasink.data.dataset import TokenDataset
from megasink.errors import UserError

PERIOD = 1 << 16  # samples after which the pattern repeats; weights are rounded to its 65,536ths


class BlendedDataset:
    """An endless mixture; after any n samples each dataset has given n times its weight, to within one or two.

    Sample i is pure in (weights, i): row i mod PERIOD of a fixed pattern says which dataset, and how many samples of
    that dataset came before within the period.
    """

    def __init__(self, datasets: list[TokenDataset], weights: list[float]) -> None:
        self.datasets = datasets
        self.seq_length = datasets[0].seq_length
        self.num_samples = None
        self._quotas = _quotas(weights)
        self._which, self._number = _pattern(self._quotas)

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample number within it) of sample `index`."""
        period, row = divmod(index, PERIOD)
        which = int(self._which[row])
        return which, period * int(self._quotas[which]) + int(self._number[row])

    def sample(self, index: int) -> np.ndarray:
        """int64 [seq_length + 1] tokens of sample `index` >= 0."""
        which, number = self.locate(index)
        return self.datasets[which].sample(number)

    def document_ids(self, index: int) -> np.ndarray:
        """int32 [seq_length + 1], as in TokenDataset."""
        which, number = self.locate(index)
        return self.datasets[which].document_ids(number)


class ChainedDataset:
    """Validation over several pairs: all of the first, then all of the next; weights do not matter, nothing wraps."""

    def __init__(self, datasets: list[TokenDataset]) -> None:
        self.datasets = datasets
        self.seq_length = datasets[0].seq_length
        self._ends = np.cumsum([dataset.num_samples for dataset in datasets])
        self.num_samples = int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample number within it) of sample `index`."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        return which, index - (int(self._ends[which - 1]) if which else 0)

    def sample(self, index: int) -> np.ndarray:
        """int64 [seq_length + 1] tokens of sample `index`."""
        which, number = self.locate(index)
        return self.datasets[which].sample(number)

    def document_ids(self, index: int) -> np.ndarray:
        """int32 [seq_length + 1], as in TokenDataset."""
        which, number = self.locate(index)
        return self.datasets[which].document_ids(number)


def _quotas(weights: list[float]) -> np.ndarray:
    """Whole samples per period of each dataset, at least one each, PERIOD together."""
    if len(weights) > PERIOD:
        raise UserError(f"--data-path: {len(weights)} datasets are more than the {PERIOD} that can be mixed")
    exact = np.array(weights, np.float64) / np.sum(weights) * PERIOD
    quotas = np.maximum(np.floor(exact), 1).astype(np.int64)
    while (missing := PERIOD - int(quotas.sum())) != 0:
        error = exact - quotas
        pick = np.argsort(-error, kind="stable") if missing > 0 else np.argsort(error, kind="stable")
        pick = pick[: abs(missing)] if missing > 0 else pick[quotas[pick] > 1][: abs(missing)]
        quotas[pick] += np.sign(missing)
    return quotas


def _pattern(quotas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 [PERIOD] dataset of each row, and its number within the period: each dataset's samples evenly spread."""
    which = np.repeat(np.arange(len(quotas), dtype=np.int32), quotas)
    number = np.concatenate([np.arange(quota, dtype=np.int32) for quota in quotas])
    order = np.argsort((number + 0.5) / quotas[which], kind="stable")
    return which[order], number[order]
