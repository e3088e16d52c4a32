"""The datasets of a run: what its samples come from."""

from megasink.config import RunConfig
from megasink.data.build import build_dataset, parse_data_path
from megasink.data.dataset import SampleSource
from megasink.data.manifest import read_manifest
from megasink.errors import UserError
from megasink.tokenize.tokenizers import load_tokenizer


def train_dataset(config: RunConfig) -> SampleSource:
    """Endless. Raises UserError where the shards are missing, damaged or too short."""
    data = config.data
    split = None if data.valid_data_path else data.split
    return build_dataset(
        data.data_path,
        split,
        "train",
        config.model.seq_length,
        config.training.seed,
        first_token=_first_token(config),
        cache_dir=data.data_cache_path,
    )


def valid_dataset(config: RunConfig) -> SampleSource | None:
    """None where the run does not evaluate. Raises UserError also where it holds fewer samples than --eval-iters."""
    training, data = config.training, config.data
    if training.eval_interval == 0:
        return None
    path, split = (data.valid_data_path, None) if data.valid_data_path else (data.data_path, data.split)
    dataset = build_dataset(
        path, split, "valid", config.model.seq_length, training.seed, first_token=_first_token(config)
    )
    needed = training.eval_iters * training.global_batch_size
    if dataset.num_samples < needed:
        most = dataset.num_samples // training.global_batch_size
        less = f"lower --eval-iters to {most}" if most else "do not evaluate (--eval-interval 0)"
        raise UserError(
            f"--eval-iters {training.eval_iters} x --global-batch-size {training.global_batch_size} need {needed} "
            f"validation samples, the split holds {dataset.num_samples} and never wraps; {less} or give more held-out "
            "data"
        )
    return dataset


def _first_token(config: RunConfig) -> int | None:
    """BOS with --bos-first, from --tokenizer or the shards' manifest; their tokenizers are known to be one."""
    data = config.data
    if not data.bos_first:
        return None
    manifests = (read_manifest(prefix) for prefix in parse_data_path(data.data_path)[1])
    source = load_tokenizer(data.tokenizer) if data.tokenizer else next(filter(None, manifests), None)
    if source is None:
        raise UserError(f"--bos-first: {data.data_path[-1]} has no manifest that names BOS; give --tokenizer")
    if source.bos_id is None:
        raise UserError("--bos-first: the tokenizer of the shards has no BOS token; drop the flag")
    return source.bos_id
