"""Which samples a rank reads at a step: a pure function of how many samples the run has consumed."""

import numpy as np

from megasink.data.dataset import SampleSource
from megasink.errors import OneRankError, UserError


def global_batch(
    dataset: SampleSource,
    consumed_samples: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    vocab_size: int | None = None,
) -> np.ndarray:
    """One rank's part of the global batch that follows `consumed_samples`.

    The ranks' parts together are samples consumed_samples ... + global_batch_size - 1, whatever the number of ranks and
    the micro-batch size: so both may change on resume.

    Returns:
        int64 [global_batch_size / (micro_batch_size data_parallel_size), micro_batch_size, seq_length + 1].

    Raises:
        UserError: sizes that do not divide, or a validation split with too few samples left.
        OneRankError: a token id outside `vocab_size`, where given (a damaged .bin looks whole until it is read).
    """
    per_step = micro_batch_size * data_parallel_size
    if global_batch_size % per_step:
        raise UserError(
            f"--global-batch-size {global_batch_size} is not a multiple of --micro-batch-size {micro_batch_size} x "
            f"{data_parallel_size} data-parallel ranks"
        )
    stop = consumed_samples + global_batch_size
    if dataset.num_samples is not None and stop > dataset.num_samples:
        raise UserError(
            f"evaluation needs samples {consumed_samples} to {stop}, but the split holds {dataset.num_samples} and "
            "never wraps; lower --eval-iters or --global-batch-size, or give more held-out data"
        )
    per_rank = global_batch_size // data_parallel_size
    first = consumed_samples + data_parallel_rank * per_rank
    samples = np.stack([dataset.sample(index) for index in range(first, first + per_rank)])
    if vocab_size is not None and (samples.max() >= vocab_size or samples.min() < 0):
        raise _outside_vocabulary(dataset, samples, first, vocab_size)
    return samples.reshape(-1, micro_batch_size, dataset.seq_length + 1)


def _outside_vocabulary(dataset: SampleSource, samples: np.ndarray, first: int, vocab_size: int) -> OneRankError:
    row, column = np.argwhere((samples < 0) | (samples >= vocab_size))[0]
    prefix = dataset.prefix_of(first + int(row))
    return OneRankError(
        f"{prefix}.bin: sample {first + row} has token id {samples[row, column]}, the vocabulary has {vocab_size} "
        f"entries: damaged, or made with another tokenizer; look with tools/inspect_data.py {prefix}"
    )
