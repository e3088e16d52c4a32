"""A run's checkpoints: where they are, which are complete and undamaged, and how one is read back.

Beside DeepSpeed's own files (optimizer state, read by exact resume only) each holds the consolidated weights, the
configuration, `state.json`, and `manifest.json`, which is written last (see saver.py).
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from megasink.checkpoint.folders import step_folders
from megasink.checkpoint.manifest import MANIFEST_FILE, find_damage
from megasink.checkpoint.same_model import check_same_model
from megasink.checkpoint.trust import only_data
from megasink.checkpoint.universal import load_moved, why_not_movable
from megasink.config import RunConfig
from megasink.errors import UserError
from megasink.model.llama import stage_blocks
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.shard import ALIGNED_ELEMENTS

STATE_FILE = "state.json"


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def rng_file(rank: int) -> str:
    return f"rng_rank_{rank:05d}.pt"


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Those with a manifest, fewest steps first."""
    return [path for path in step_folders(checkpoints) if (path / MANIFEST_FILE).is_file()]


def newest_intact(checkpoints: Path, say: Callable[[str], None]) -> Path | None:
    """The newest resumable checkpoint whose files are as they were written; every rank must call this.

    Each damaged one on the way is set aside as `damaged_step_N` with one line. The ranks share the reading.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    # with or without a manifest: a folder has its name only once it is whole, so one that lacks it has lost it
    candidates = _from_first_rank([path.name for path in step_folders(checkpoints) if _is_resumable(path)])
    for name in reversed(candidates):
        found: list[str | None] = [None] * world
        dist.all_gather_object(found, find_damage(checkpoints / name, rank, world))
        damage = next((entry for entry in found if entry is not None), None)
        if damage is None:
            return checkpoints / name
        if rank == 0:
            aside = checkpoints / f"damaged_{name}"
            shutil.rmtree(aside, ignore_errors=True)
            (checkpoints / name).rename(aside)
            say(f"megasink: checkpoint {name} is damaged ({damage}); set aside as {aside.name}, using the one before")
        dist.barrier()
    if candidates:
        raise UserError(
            f"{checkpoints}: every checkpoint is damaged; start over with another --save, or from weights with --load"
        )
    return None


def load_checkpoint(
    checkpoint: Path, config: RunConfig, layout: ParallelLayout, engine: deepspeed.DeepSpeedEngine
) -> dict:
    """Restore weights and optimizer of a checkpoint, whatever layout it was made with; returns its state.

    Under the same layout each rank's random state comes back too.

    Raises:
        UserError: another model, more steps than the run is to have, a layout it cannot move to, or files DeepSpeed
            cannot read.
    """
    check_same_model(checkpoint, config.model)
    state = read_state(checkpoint)
    if state["step"] > config.training.train_iters:
        raise UserError(
            f"--train-iters {config.training.train_iters}: {checkpoint} has {state['step']}; give that or more"
        )
    saved, here = state["layout"], describe_layout(config, layout)
    if saved != here:
        reason = why_not_movable(saved, here)
        if reason is not None:
            differing = [f"{key} {saved.get(key)} (now {here[key]})" for key in here if saved.get(key) != here[key]]
            raise UserError(
                f"{checkpoint} was saved with another layout, {', '.join(differing)}: {reason}; or start from its "
                f"weights alone with --load {checkpoint}"
            )
        load_moved(checkpoint, engine)
        return state
    try:
        with only_data():
            # load_checkpoint only warns and returns None where files are missing
            path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise UserError(
            f"{checkpoint}: DeepSpeed's files are damaged ({str(error).splitlines()[0]}); remove this checkpoint to "
            "use an older one"
        ) from None
    if path is None:
        raise UserError(
            f"{checkpoint}: DeepSpeed's files are missing or damaged; remove this checkpoint to use an older one"
        )
    _restore_random_state(checkpoint / rng_file(dist.get_rank()))
    return state


def remove_leftovers(checkpoints: Path) -> None:
    """What saves that were cut short have left behind."""
    for path in checkpoints.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def read_state(checkpoint: Path) -> dict:
    """step, consumed_samples, consumed_tokens, resumable, layout. Raises UserError if there is none."""
    path = checkpoint / STATE_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{checkpoint}: no {STATE_FILE}; not a complete megasink checkpoint") from None
    except ValueError:
        raise UserError(f"{path}: damaged (not JSON); use an older checkpoint") from None


def describe_layout(config: RunConfig, layout: ParallelLayout) -> dict:
    """What DeepSpeed's files depend on."""
    heads, ranks = config.model.num_key_value_heads, layout.tensor.size
    thetas = heads // ranks if heads >= ranks else heads
    # until 2026-11-28 they lay between the norm weights, as in modules
    order = {"thetas": "last"} if config.model.v_scale == "on" and thetas % ALIGNED_ELEMENTS else {}
    return order | {
        "tensor_parallel": layout.tensor.size,
        "pipeline_parallel": layout.pipeline.size,
        "data_parallel": layout.replica.size,
        "zero_stage": config.parallel.zero_stage,
        "stage_blocks": stage_blocks(config.model, config.parallel),
        "precision": config.training.precision,
    }


def _restore_random_state(path: Path) -> None:
    if not path.exists():
        return
    random = torch.load(path, map_location="cpu", weights_only=True)
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])


def _is_resumable(checkpoint: Path) -> bool:
    """False only where it says so: a checkpoint with a damaged state is a damaged one, not one to pass over."""
    try:
        return bool(read_state(checkpoint).get("resumable", True))
    except (UserError, AttributeError):
        return os.path.basename(checkpoint) != "step_00000000"


def _from_first_rank(value: list[str]) -> list[str]:
    """All ranks must walk the same list, whatever a shared file system shows each."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
