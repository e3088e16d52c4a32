"""Micro-batches of a step as tensors, read ahead by one thread while the step before is computed."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from megasink.config import RunConfig
from megasink.data.build import build_dataset
from megasink.data.dataset import SampleSource
from megasink.data.sampler import global_batch
from megasink.parallel.layout import ParallelLayout


class Batches:
    """One rank's part of each global batch of a dataset; which samples is a function of consumed samples alone."""

    def __init__(self, dataset: SampleSource, config: RunConfig, layout: ParallelLayout):
        self.dataset = dataset
        self.config = config
        self.layout = layout
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._ahead: tuple[int, Future] | None = None

    def at(self, consumed_samples: int) -> list[tuple[Tensor, Tensor]]:
        """(tokens, labels) int64 [B, T] per micro-batch, on the CPU (pinned where there is a GPU)."""
        if self._ahead is not None and self._ahead[0] == consumed_samples:
            batch = self._ahead[1].result()
        else:
            batch = self._read(consumed_samples)
        following = consumed_samples + self.config.training.global_batch_size
        if self.dataset.num_samples is None:
            self._ahead = (following, self._reader.submit(self._read, following))
        return batch

    def _read(self, consumed_samples: int) -> list[tuple[Tensor, Tensor]]:
        training, data = self.config.training, self.layout.data
        samples = torch.from_numpy(
            global_batch(
                self.dataset,
                consumed_samples,
                training.global_batch_size,
                training.micro_batch_size,
                data.rank,
                data.size,
            )
        )
        tokens, labels = samples[..., :-1].contiguous(), samples[..., 1:].contiguous()
        if torch.cuda.is_available():
            tokens, labels = tokens.pin_memory(), labels.pin_memory()
        return list(zip(tokens, labels, strict=True))


def train_dataset(config: RunConfig) -> SampleSource:
    data = config.data
    split = None if data.valid_data_path else data.split
    return build_dataset(data.data_path, split, "train", config.model.seq_length, config.training.seed)


def valid_dataset(config: RunConfig) -> SampleSource:
    data = config.data
    path, split = (data.valid_data_path, None) if data.valid_data_path else (data.data_path, data.split)
    return build_dataset(path, split, "valid", config.model.seq_length, config.training.seed)
