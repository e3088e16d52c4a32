"""Bytes of a checkpoint, from what megasink.checkpoint.saver and DeepSpeed write."""

from megasink.config import CheckpointConfig, RunConfig
from megasink.model.flops import num_parameters
from megasink.plan.parameters import stage_parameters

ADAM_BYTES = 12
"""fp32 master weight and AdamW's two moments, per parameter."""


def element_size(config: RunConfig) -> int:
    return 2 if config.training.precision == "bf16" else 4


def consolidated_bytes(config: RunConfig) -> int:
    """model.safetensors: the whole model in the training dtype, vocabulary unpadded."""
    return num_parameters(config.model) * element_size(config)


def checkpoint_bytes(config: RunConfig) -> int:
    """One resumable checkpoint: consolidated weights, and DeepSpeed's weights and optimizer state of every rank."""
    parallel, each = config.parallel, element_size(config)
    stages = stage_parameters(config.model, parallel)
    held = parallel.tensor_model_parallel_size * sum(stage.total for stage in stages)
    if parallel.zero_stage == 3:
        engine = ADAM_BYTES  # the master weights stand for the weights
    elif parallel.zero_stage == 0:
        engine = 8 + each  # fp32 weights are their own masters
    else:
        engine = ADAM_BYTES + each
    return consolidated_bytes(config) + engine * held


def kept_checkpoints(checkpoint: CheckpointConfig, train_iters: int) -> int:
    """Resumable checkpoints on the disk at the end of a run, and one more while it is written."""
    interval = checkpoint.save_interval or train_iters
    written = -(-train_iters // interval)
    if checkpoint.keep_last == 0:
        return written
    extra = train_iters // checkpoint.keep_every if checkpoint.keep_every else 0
    return min(written, checkpoint.keep_last + 1 + extra)
