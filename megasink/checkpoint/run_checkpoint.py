"""A run's checkpoints: `checkpoints/step_00000100/` appears whole or not at all.

Beside DeepSpeed's own files (optimizer state, read by exact resume only) each holds the consolidated weights, the
configuration and `state.json`, which is written last.
"""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import nn

from megasink.checkpoint.trust import only_data
from megasink.checkpoint.universal import load_moved, universal_info, why_not_movable
from megasink.checkpoint.weights import gather_weights, save_index, save_weights
from megasink.config import RunConfig
from megasink.config.cli import to_yaml
from megasink.errors import UserError
from megasink.model.llama import stage_blocks
from megasink.parallel.layout import ParallelLayout

STATE_FILE = "state.json"


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def save_checkpoint(
    checkpoints: Path,
    state: dict,
    model: nn.Module,
    config: RunConfig,
    layout: ParallelLayout,
    engine: deepspeed.DeepSpeedEngine | None,
) -> Path:
    """Write `checkpoints/step_N` with N = state["step"]; every rank must call this.

    Without an engine the folder holds weights only (the untrained ones of step 0): it can be analysed, not resumed.
    """
    final = checkpoint_path(checkpoints, state["step"])
    temporary = checkpoints / f".tmp-{final.name}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    dist.barrier()
    if engine is not None:
        model.universal_checkpoint_info = universal_info(config.model, layout)
        engine.save_checkpoint(str(checkpoints), tag=temporary.name, save_latest=False)
    partitioned = list(model.parameters()) if config.parallel.zero_stage == 3 and engine is not None else None
    with deepspeed.zero.GatheredParameters(partitioned) if partitioned else contextlib.nullcontext():
        weights = gather_weights(model, config.model, layout)
    if weights and layout.replica.rank == 0:
        save_weights(weights, temporary, layout.pipeline.rank, layout.pipeline.size)
    dist.barrier()
    if first:
        save_index(temporary, layout.pipeline.size)
        (temporary / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        described = state | {"resumable": engine is not None, "layout": describe_layout(config, layout)}
        with open(temporary / STATE_FILE, "w", encoding="utf-8") as file:
            json.dump(described, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    dist.barrier()
    return final


def load_checkpoint(
    checkpoint: Path, config: RunConfig, layout: ParallelLayout, engine: deepspeed.DeepSpeedEngine
) -> dict:
    """Restore weights and optimizer of a checkpoint, whatever layout it was made with; returns its state.

    Raises:
        UserError: a layout it cannot move to, or files DeepSpeed cannot read.
    """
    state = read_state(checkpoint)
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
    return state


def newest_checkpoint(checkpoints: Path, resumable: bool = True) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    found = sorted(path.parent for path in checkpoints.glob(f"step_*/{STATE_FILE}"))
    if resumable:
        found = [path for path in found if read_state(path)["resumable"]]
    return found[-1] if found else None


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
    return {
        "tensor_parallel": layout.tensor.size,
        "pipeline_parallel": layout.pipeline.size,
        "data_parallel": layout.replica.size,
        "zero_stage": config.parallel.zero_stage,
        "stage_blocks": stage_blocks(config.model, config.parallel),
        "precision": config.training.precision,
    }
