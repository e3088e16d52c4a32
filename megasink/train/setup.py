"""Puts the parts of a run together: ranks, folder, data, engine, resumed or loaded weights; then trains."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from megasink.checkpoint.run_checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from megasink.config import RunConfig
from megasink.errors import UserError
from megasink.model.llama import blocks_of
from megasink.parallel.layout import ParallelLayout, build_layout
from megasink.stats.recorder import SinkRecorder
from megasink.train.agree import agree
from megasink.train.batches import Batches, train_dataset, valid_dataset
from megasink.train.distributed import end_distributed, start_distributed
from megasink.train.engine import TrainEngine
from megasink.train.flops import num_parameters
from megasink.train.loop import Progress, Run, train
from megasink.train.run_folder import RunFolder
from megasink.train.run_log import RunLog
from megasink.train.vocabulary import resolve_vocab_size


def run_training(config: RunConfig) -> None:
    """Train to the end, or to a requested stop. Every rank of the job calls this."""
    device = start_distributed()
    try:
        run = _prepare(config, device)
        train(run)
        if run.log is not None:
            run.log.close()
    finally:
        end_distributed()


def _prepare(config: RunConfig, device: torch.device) -> Run:
    config.model.vocab_size = agree(lambda: resolve_vocab_size(config))
    dataset = agree(lambda: train_dataset(config))
    valid = agree(lambda: _valid_batches_or_none(config))
    folder = RunFolder(config.checkpoint.save)
    agree(folder.create, on_rank=0)
    agree(lambda: _check_fresh_or_resuming(folder, config))

    parallel = config.parallel
    layout = build_layout(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.sequence_parallel,
        parallel.context_parallel_size,
    )
    initial = None if config.checkpoint.load is None else _weights_folder(config.checkpoint.load)
    engine = agree(lambda: TrainEngine(config, layout, device, initial))
    progress = agree(lambda: _resume_or_start(folder, config, layout, engine))

    log = None
    if dist.get_rank() == 0:
        folder.write_configuration(config, dist.get_world_size())
        log = RunLog(folder, config, progress.step)
        log.say(_headline(config, layout, device, progress))
    return Run(
        config=config,
        layout=layout,
        device=device,
        folder=folder,
        engine=engine,
        recorder=SinkRecorder(config.model, layout, blocks_of(engine.model)),
        train=Batches(dataset, config, layout),
        valid=None if valid is None else Batches(valid, config, layout),
        log=log,
        progress=progress,
    )


def _valid_batches_or_none(config: RunConfig):
    training = config.training
    if training.eval_interval == 0:
        return None
    dataset = valid_dataset(config)
    needed = training.eval_iters * training.global_batch_size
    if dataset.num_samples < needed:
        raise UserError(
            f"--eval-iters {training.eval_iters} x --global-batch-size {training.global_batch_size} need {needed} "
            f"validation samples, the split holds {dataset.num_samples} and never wraps; lower --eval-iters to "
            f"{dataset.num_samples // training.global_batch_size} or give more held-out data"
        )
    return dataset


def _check_fresh_or_resuming(folder: RunFolder, config: RunConfig) -> None:
    if not config.checkpoint.auto_resume and newest_checkpoint(folder.checkpoints, resumable=False) is not None:
        raise UserError(f"--save {folder.path} holds a run already; go on with --auto-resume, or name another folder")


def _weights_folder(load: str) -> Path:
    """--load names a checkpoint, or a run folder whose newest checkpoint is meant."""
    path = Path(load)
    return newest_checkpoint(path / "checkpoints", resumable=False) or path


def _resume_or_start(folder: RunFolder, config: RunConfig, layout: ParallelLayout, engine: TrainEngine) -> Progress:
    checkpoint = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        progress = Progress()
        save_checkpoint(folder.checkpoints, vars(progress), engine.model, config, layout, engine=None)
        return progress
    state = load_checkpoint(checkpoint, config, layout, engine.engine)
    return Progress(state["step"], state["consumed_samples"], state["consumed_tokens"])


def _headline(config: RunConfig, layout: ParallelLayout, device: torch.device, progress: Progress) -> str:
    model, training = config.model, config.training
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    begins = f"resuming after step {progress.step}" if progress.step else "starting"
    return (
        f"megasink: {begins}; {num_parameters(model) / 1e6:.1f}M parameters ({model.num_layers} layers, width "
        f"{model.hidden_size}, V-scale {model.v_scale}), {training.precision}, TP {layout.tensor.size} x PP "
        f"{layout.pipeline.size} x DP {layout.data.size}, ZeRO-{config.parallel.zero_stage}, batch "
        f"{training.global_batch_size} x {model.seq_length} tokens, {training.train_iters} steps, on {where}"
    )
