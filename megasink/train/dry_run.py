"""`--dry-run`: everything of a run but the training, on one machine without GPUs.

What would be wrong on any machine ends the dry run with one line, as in training. What may only be missing on this one
(data, tokenizer, room for checkpoints) is a warning: a 70B run is looked at on a laptop, too.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megasink.checkpoint.same_model import check_same_model
from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.deepspeed import deepspeed_config
from megasink.errors import UserError, is_speaking_rank
from megasink.plan.checkpoint_size import checkpoint_bytes, kept_checkpoints
from megasink.plan.gpus import GPUS, RESERVED
from megasink.plan.memory import stage_memory
from megasink.train.launch import first_host
from megasink.train.vocabulary import missing_shards, vocab_size_at_hand


@dataclass(frozen=True)
class Finding:
    """One line of the report; `missing` names what could not be checked here."""

    text: str
    missing: str | None = None


def dry_run(config: RunConfig, world_size: int | None = None) -> None:
    """Check and print, rank 0 of a job alone. Raises UserError at what is wrong."""
    if not is_speaking_rank():
        return
    world_size, source = _world_size(config, world_size)
    check_run(config, world_size)
    replicas = _replicas(config, world_size)
    deepspeed_config(config, replicas)  # for what it refuses
    print(f"megasink: dry run of {world_size} rank{'s' if world_size > 1 else ''} ({source})", flush=True)
    missing = []

    def report(subject: str, finding: Finding) -> None:
        if finding.missing is not None:
            missing.append(finding.missing)
        print(f"  {subject:<12} {'WARNING: ' if finding.missing else ''}{finding.text}", flush=True)

    report("settings", _settings(config, replicas))
    report("rendezvous", _rendezvous(os.environ))
    checks: dict[str, Callable[[RunConfig], Finding]] = {
        "data": _data,
        "tokenizer": _tokenizer,
        "vocabulary": _vocabulary,  # changes config.model.vocab_size
        "samples": _samples,
        "weights": _initial_weights,
        "run folder": _run_folder,
        "checkpoints": _disk_space,
    }
    for subject, check in checks.items():
        report(subject, check(config))
    report("memory", _memory(config, replicas))
    for line in _forward(config):
        report("forward", Finding(line))
    found = f"not checked here: {', '.join(missing)}" if missing else "all is there"
    print(f"megasink: the dry run found nothing wrong; {found}", flush=True)


def _world_size(config: RunConfig, given: int | None) -> tuple[int, str]:
    if given is not None:
        if given < 1:
            raise UserError(f"--world-size {given}: must be at least 1")
        return given, "--world-size"
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if int(os.environ.get(name, "1")) > 1:
            return int(os.environ[name]), name
    parallel = config.parallel
    least = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    return max(1, least), "the least that this layout needs; --world-size N for N"


def _replicas(config: RunConfig, world_size: int) -> int:
    parallel = config.parallel
    return world_size // (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)


def _settings(config: RunConfig, replicas: int) -> Finding:
    parallel, training = config.parallel, config.training
    data = replicas // parallel.context_parallel_size
    micro_batches = training.global_batch_size // (training.micro_batch_size * data)
    return Finding(
        f"TP {parallel.tensor_model_parallel_size} x PP {parallel.pipeline_model_parallel_size} x CP "
        f"{parallel.context_parallel_size} x DP {data}, ZeRO-{parallel.zero_stage}, {training.arithmetic}; "
        f"{micro_batches} micro-batches of {training.micro_batch_size} x {config.model.seq_length} tokens a step"
    )


def _rendezvous(environ: os._Environ) -> Finding:
    """Names resolve; nobody is called."""
    host = None
    if int(environ["WORLD_SIZE"]) > 1:
        host = environ["MASTER_ADDR"]
    elif "SLURM_JOB_NODELIST" in environ:
        host = first_host(environ["SLURM_JOB_NODELIST"])
    if host is None:
        return Finding("no launcher started this; deepspeed, torchrun or srun will say who meets where")
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except OSError as error:
        raise UserError(f"MASTER_ADDR {host} does not resolve on this machine ({error.strerror})") from None
    return Finding(f"rank 0 is on {host} ({address})")


def _data(config: RunConfig) -> Finding:
    missing = missing_shards(config)
    if not missing:
        return Finding(f"{' '.join(config.data.data_path)}: all files are there")
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return Finding(f"{missing[0]}{more} not found; tools/preprocess_data.py makes them", "data")


def _tokenizer(config: RunConfig) -> Finding:
    tokenizer = config.data.tokenizer
    if tokenizer is None:
        return Finding("not given: the shards say what made them")
    if not Path(tokenizer).exists():
        return Finding(f"--tokenizer {tokenizer} not found", "tokenizer")
    return Finding(tokenizer)


def _vocabulary(config: RunConfig) -> Finding:
    config.model.vocab_size, source = vocab_size_at_hand(config)
    return Finding(f"{config.model.vocab_size} entries ({source}), {config.model.padded_vocab_size} with padding")


def _samples(config: RunConfig) -> Finding:
    """Opens every shard, as training does, and reads the first sample."""
    if missing_shards(config):
        return Finding("not read, the data are missing")
    from megasink.train.datasets import train_dataset, valid_dataset

    train, valid = train_dataset(config), valid_dataset(config)
    largest = int(train.sample(0).max())
    if largest >= config.model.vocab_size:
        raise UserError(
            f"--data-path: the first sample has token id {largest}, the vocabulary has {config.model.vocab_size} "
            "entries; give the tokenizer the data were made with"
        )
    wanted = config.training.train_iters * config.training.global_batch_size
    held_out = "" if valid is None else f"; {valid.num_samples} for evaluation"
    return Finding(f"{wanted} to train on = {wanted / train.samples_per_epoch:.2f} epochs{held_out}")


def _initial_weights(config: RunConfig) -> Finding:
    load = config.checkpoint.load
    if load is None:
        return Finding("random, from --seed")
    return Finding(f"from {load}") if Path(load).exists() else Finding(f"--load {load} not found", "weights")


def _run_folder(config: RunConfig) -> Finding:
    """Writable, without making it; and not another run's."""
    folder = Path(config.checkpoint.save)
    exists, checkpoints = _existing_parent(folder), folder / "checkpoints"
    try:
        with tempfile.TemporaryFile(dir=exists):
            pass
    except OSError as error:
        raise UserError(f"--save {folder}: cannot write in {exists} ({error.strerror}); name another folder") from None
    found = []
    if checkpoints.is_dir():
        from megasink.checkpoint.run_checkpoint import complete_checkpoints

        found = complete_checkpoints(checkpoints)
    if not found:
        return Finding(f"{folder}: writable, a new run")
    if not config.checkpoint.auto_resume:
        raise UserError(f"--save {folder} holds a run already; go on with --auto-resume, or name another folder")
    if found[-1].name != "step_00000000" and not missing_shards(config):  # else the vocabulary may be assumed
        check_same_model(found[-1], config.model)
    return Finding(f"{folder}: writable, would go on from {found[-1].name}")


def _disk_space(config: RunConfig) -> Finding:
    each = checkpoint_bytes(config)
    count = kept_checkpoints(config.checkpoint, config.training.train_iters)
    folder = _existing_parent(Path(config.checkpoint.save))
    free = shutil.disk_usage(folder).free
    text = f"{count} of {_readable(each)} = {_readable(count * each)}; {folder.resolve()} has {_readable(free)} free"
    if free >= count * each:
        return Finding(text)
    return Finding(f"{text}; --keep-last N keeps fewer", "disk space")


def _forward(config: RunConfig) -> list[str]:
    """One micro-batch through every pipeline stage at its true size; equal stages share a line."""
    from megasink.plan.meta_model import forward_shapes

    lines: list[tuple[int, int, str]] = []
    for stage in range(config.parallel.pipeline_model_parallel_size):
        text = forward_shapes(config, stage)
        if lines and lines[-1][2] == text:
            lines[-1] = (lines[-1][0], stage, text)
        else:
            lines.append((stage, stage, text))
    return [f"stage {first}{f'-{last}' if last > first else ''}: {text}" for first, last, text in lines]


def _memory(config: RunConfig, replicas: int) -> Finding:
    stages = stage_memory(config, replicas, config.training.compile)
    fullest = max(range(len(stages)), key=lambda stage: stages[stage].total)
    total = stages[fullest].total
    parts = ", ".join(f"{name} {_readable(size)}" for name, size in vars(stages[fullest]).items() if size > 0)
    text = f"at most {_readable(total)} on a rank (stage {fullest}: {parts})"
    sizes = {gpu.memory - RESERVED: gpu.name for gpu in GPUS.values()}
    enough = [name for room, name in sizes.items() if total <= room]
    if enough:
        return Finding(f"{text}; fits {', '.join(enough)}")
    return Finding(f"{text}; fits none of {', '.join(sizes.values())}; tools/plan.py finds a layout", "memory")


def _existing_parent(path: Path) -> Path:
    path = path.absolute()  # /dev/null/run ends at a file, where nothing can be written
    while not path.exists():
        path = path.parent
    return path


def _readable(size: float) -> str:
    for unit in ("MiB", "GiB", "TiB"):
        size /= 1024 if unit != "MiB" else 2**20
        if size < 1024:
            break
    return f"{size:.1f} {unit}"
