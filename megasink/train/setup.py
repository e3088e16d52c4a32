"""Puts the parts of a run together: ranks, folder, data, engine, resumed or loaded weights; then trains."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from megasink.checkpoint.manifest import check_weights
from megasink.checkpoint.run_checkpoint import complete_checkpoints, load_checkpoint, newest_intact, remove_leftovers
from megasink.checkpoint.saver import CheckpointSaver
from megasink.config import RunConfig
from megasink.data.resume import resume_blend
from megasink.errors import UserError
from megasink.model.flops import num_parameters
from megasink.model.llama import blocks_of
from megasink.parallel.layout import ParallelLayout, build_layout
from megasink.stats.recorder import SinkRecorder
from megasink.train.agree import agree
from megasink.train.batches import Batches
from megasink.train.datasets import train_dataset, valid_dataset
from megasink.train.distributed import end_distributed, start_distributed, timed_out
from megasink.train.engine import TrainEngine
from megasink.train.loop import Progress, Run, train
from megasink.train.run_folder import RunFolder
from megasink.train.run_log import RunLog
from megasink.train.stop import StopRequest, ignore_signals
from megasink.train.vocabulary import resolve_vocab_size
from megasink.train.watchdog import Watchdog

LOCK_PATIENCE_S = 120.0
"""How long a resuming job waits for ranks that a lost node has orphaned to notice and leave the run folder."""


def run_training(config: RunConfig, stop: StopRequest) -> int:
    """Train to the end, or to a requested stop; returns the exit code. Every rank of the job calls this."""
    device = start_distributed(config.training.distributed_timeout_in_mins)
    try:
        run = _prepare(config, device, stop)
        try:
            exit_code = train(run)
        except RuntimeError as error:
            if timed_out(error):
                run.watchdog.report(error)
            raise
        run.watchdog.close()
        if run.log is not None:
            run.log.close()
        ignore_signals()
        dist.barrier()  # a launcher ends the others as soon as one rank leaves with a code of its own
        return exit_code
    finally:
        end_distributed()


def _prepare(config: RunConfig, device: torch.device, stop: StopRequest) -> Run:
    config.model.vocab_size = agree(lambda: resolve_vocab_size(config))
    dataset = agree(lambda: train_dataset(config))
    valid = agree(lambda: valid_dataset(config))
    folder = RunFolder(config.checkpoint.save)
    agree(lambda: folder.create(LOCK_PATIENCE_S if config.checkpoint.auto_resume else 0.0), on_rank=0)
    agree(lambda: _check_fresh_or_resuming(folder, config), on_rank=0)
    watchdog = Watchdog(folder.hangs, 60.0 * config.training.step_timeout_in_mins)

    parallel = config.parallel
    layout = build_layout(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.sequence_parallel,
        parallel.context_parallel_size,
    )
    initial = None if config.checkpoint.load is None else _weights_folder(config.checkpoint.load)
    if initial is not None:
        agree(lambda: check_weights(initial), on_rank=0)
    engine = agree(lambda: TrainEngine(config, layout, device, initial))
    saver = CheckpointSaver(folder.checkpoints, config, layout, folder.say)
    batches = Batches(dataset, config, layout)
    progress = _resume_or_start(folder, config, layout, engine, saver, batches)
    if engine.micro_batches is not None:
        engine.micro_batches.levels = config.sink_stats.levels(progress.step, config.training.train_iters)

    log = agree(lambda: _start_log(folder, config, progress), on_rank=0)
    if log is not None:
        log.say(_headline(config, layout, device, progress))
    return Run(
        config=config,
        layout=layout,
        device=device,
        folder=folder,
        engine=engine,
        recorder=SinkRecorder(config.model, layout, blocks_of(engine.model)),
        train=batches,
        valid=None if valid is None else Batches(valid, config, layout),
        saver=saver,
        watchdog=watchdog,
        stop=stop,
        log=log,
        progress=progress,
    )


def _check_fresh_or_resuming(folder: RunFolder, config: RunConfig) -> None:
    if not config.checkpoint.auto_resume and complete_checkpoints(folder.checkpoints):
        raise UserError(f"--save {folder.path} holds a run already; go on with --auto-resume, or name another folder")
    remove_leftovers(folder.checkpoints)


def _weights_folder(load: str) -> Path:
    """--load names a checkpoint, or a run folder whose newest checkpoint is meant."""
    path = Path(load)
    found = complete_checkpoints(path / "checkpoints")
    return found[-1] if found else path


def _resume_or_start(
    folder: RunFolder,
    config: RunConfig,
    layout: ParallelLayout,
    engine: TrainEngine,
    saver: CheckpointSaver,
    batches: Batches,
) -> Progress:
    """How far the run is; `batches` goes on with the data from there."""
    checkpoint = newest_intact(folder.checkpoints, folder.say)
    if checkpoint is None:
        if dist.get_rank() == 0 and config.checkpoint.auto_resume and folder.metrics.exists():
            folder.say(f"megasink: {folder.path} has no checkpoint to resume from yet; starting at step 0 again")
        progress = Progress()
        saver.save(vars(progress), engine.model, engine=None)
        return progress
    state = agree(lambda: load_checkpoint(checkpoint, config, layout, engine.engine))
    if "data" in state:
        batches.dataset = agree(lambda: resume_blend(state["data"], batches.dataset))
    return Progress(
        state["step"],
        state["consumed_samples"],
        state["consumed_tokens"],
        state.get("skipped_steps", 0),
        state.get("growth_warns_at", {}),
    )


def _start_log(folder: RunFolder, config: RunConfig, progress: Progress) -> RunLog:
    try:
        folder.write_configuration(config, dist.get_world_size())
        return RunLog(folder, config, progress.step, progress.growth_warns_at)
    except OSError as error:
        raise UserError(f"--save {folder.path}: cannot write there ({error.strerror}); make room") from None


def _headline(config: RunConfig, layout: ParallelLayout, device: torch.device, progress: Progress) -> str:
    model, training = config.model, config.training
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    begins = f"resuming after step {progress.step}" if progress.step else "starting"
    return (
        f"megasink: {begins}; {num_parameters(model) / 1e6:.1f}M parameters ({model.num_layers} layers, width "
        f"{model.hidden_size}, V-scale {model.v_scale}), {training.arithmetic}, TP {layout.tensor.size} x PP "
        f"{layout.pipeline.size} x CP {layout.context.size} x DP {layout.data.size}, "
        f"ZeRO-{config.parallel.zero_stage}, batch {training.global_batch_size} x {model.seq_length} tokens, "
        f"{training.train_iters} steps, on {where}"
    )
