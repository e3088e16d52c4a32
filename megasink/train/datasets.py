"""The datasets of a run: what its samples come from."""

from megasink.config import RunConfig
from megasink.data.build import build_dataset
from megasink.data.dataset import SampleSource
from megasink.errors import UserError


def train_dataset(config: RunConfig) -> SampleSource:
    """Endless. Raises UserError where the shards are missing, damaged or too short."""
    data = config.data
    split = None if data.valid_data_path else data.split
    return build_dataset(data.data_path, split, "train", config.model.seq_length, config.training.seed)


def valid_dataset(config: RunConfig) -> SampleSource | None:
    """None where the run does not evaluate. Raises UserError also where it holds fewer samples than --eval-iters."""
    training, data = config.training, config.data
    if training.eval_interval == 0:
        return None
    path, split = (data.valid_data_path, None) if data.valid_data_path else (data.data_path, data.split)
    dataset = build_dataset(path, split, "valid", config.model.seq_length, training.seed)
    needed = training.eval_iters * training.global_batch_size
    if dataset.num_samples < needed:
        raise UserError(
            f"--eval-iters {training.eval_iters} x --global-batch-size {training.global_batch_size} need {needed} "
            f"validation samples, the split holds {dataset.num_samples} and never wraps; lower --eval-iters to "
            f"{dataset.num_samples // training.global_batch_size} or give more held-out data"
        )
    return dataset
