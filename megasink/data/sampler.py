"""Which samples a rank reads at a step: a pure function of how many samples the run has consumed."""

import numpy as np

from megasink.data.dataset import SampleSource
from megasink.errors import UserError


def global_batch(
    dataset: SampleSource,
    consumed_samples: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
) -> np.ndarray:
    """One rank's part of the global batch that follows `consumed_samples`.

    The ranks' parts together are samples consumed_samples ... + global_batch_size - 1, whatever the number of ranks and
    the micro-batch size: so both may change on resume.

    Returns:
        int64 [global_batch_size / (micro_batch_size data_parallel_size), micro_batch_size, seq_length + 1].

    Raises:
        UserError: sizes that do not divide, or a validation split with too few samples left.
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
    return samples.reshape(-1, micro_batch_size, dataset.seq_length + 1)
