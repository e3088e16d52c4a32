"""Micro-batches of a step as tensors, read ahead by one thread while the step before is computed."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from megasink.config import RunConfig
from megasink.data.dataset import SampleSource
from megasink.data.sampler import global_batch
from megasink.parallel.layout import ParallelLayout
from megasink.train.engine import MicroBatch
from megasink.train.trace import DATA_RANGE


class Batches:
    """One rank's part of each global batch of a dataset; which samples is a function of consumed samples alone."""

    def __init__(self, dataset: SampleSource, config: RunConfig, layout: ParallelLayout):
        self.dataset = dataset
        self.config = config
        self.layout = layout
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._ahead: tuple[int, Future] | None = None

    def at(self, consumed_samples: int) -> list[MicroBatch]:
        """Of the global batch that follows `consumed_samples`, on the CPU (pinned where there is a GPU)."""
        with record_function(DATA_RANGE):
            return self._at(consumed_samples)

    def _at(self, consumed_samples: int) -> list[MicroBatch]:
        if self._ahead is not None and self._ahead[0] == consumed_samples:
            batch = self._ahead[1].result()
        else:
            batch = self._read(consumed_samples)
        following = consumed_samples + self.config.training.global_batch_size
        if self.dataset.num_samples is None:  # endless: a validation split may hold no samples that follow
            self._ahead = (following, self._reader.submit(self._read, following))
        return batch

    def _read(self, consumed_samples: int) -> list[MicroBatch]:
        training, data = self.config.training, self.layout.data
        samples = torch.from_numpy(
            global_batch(
                self.dataset,
                consumed_samples,
                training.global_batch_size,
                training.micro_batch_size,
                data.rank,
                data.size,
                self.config.model.vocab_size,
            )
        )
        parts = [samples[..., :-1], samples[..., 1:]]
        model = self.config.model
        if model.reset_attention_mask or model.reset_position_ids:
            parts.append(self._document_ids(consumed_samples).view(samples.shape)[..., :-1])
        parts = [part.contiguous() for part in parts]
        if torch.cuda.is_available():
            parts = [part.pin_memory() for part in parts]
        return [MicroBatch(*micro_batch) for micro_batch in zip(*parts, strict=True)]

    def _document_ids(self, consumed_samples: int) -> Tensor:
        """int32 [samples of this rank, T + 1] beside what `global_batch` returns."""
        per_rank = self.config.training.global_batch_size // self.layout.data.size
        first = consumed_samples + self.layout.data.rank * per_rank
        ids = [self.dataset.document_ids(index) for index in range(first, first + per_rank)]
        return torch.from_numpy(np.stack(ids))
