"""Checkpoints that move: saved under one layout, resumed under another, through DeepSpeed's universal format.

Universal checkpoints (DeepSpeed, arXiv 2406.18820) hold each parameter's fp32 weight and Adam moments whole. They are
made for one resume and removed after it.
"""

import argparse
import contextlib
import datetime
import io
import re
import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from deepspeed.checkpoint.ds_to_universal import main as ds_to_universal

from megasink.checkpoint.trust import only_data
from megasink.config import ModelConfig
from megasink.errors import UserError
from megasink.model.llama import TIED_EMBEDDING, parameter_prefixes
from megasink.parallel.layout import ParallelLayout

_LONGEST_CONVERSION = datetime.timedelta(hours=12)
_BLOCK = r"\d+\."


def universal_info(config: ModelConfig, layout: ParallelLayout) -> dict:
    """What DeepSpeed's converter must know of the model: how each kind of parameter is cut, as name patterns.

    Every save stores it. Parameters of no pattern are cut along dimension 0 over tensor-parallel ranks.
    """
    final_norm = next(module for module, name in parameter_prefixes(config).items() if name == "model.norm")
    replicated = [
        _BLOCK + r"(input_layernorm|post_attention_layernorm)\.weight",
        re.escape(final_norm) + r"\.weight",
    ]
    if config.num_key_value_heads < layout.tensor.size:
        replicated.append(_BLOCK + r"self_attn\.(k_proj|v_proj)\.weight")
        if config.v_scale == "on":
            replicated.append(_BLOCK + r"self_attn\.v_scale\.theta")
    return {
        "universal_checkpoint_version": 0.4,
        "parameter_with_row_parallelism_patterns": [_BLOCK + r"(self_attn\.o_proj|mlp\.down_proj)\.weight"],
        "tp_replicated_parameter_patterns": replicated,
        "pipeline_replicated_parameter_patterns": [rf"tied_modules\.{TIED_EMBEDDING}\.weight"],
    }


def why_not_movable(saved: dict, now: dict) -> str | None:
    """In words why a checkpoint of layout `saved` cannot be resumed under layout `now` (see `describe_layout`)."""
    if saved.get("precision") != now["precision"]:
        return f"optimizer state of {saved.get('precision')} training cannot become that of {now['precision']} training"
    stages = saved["zero_stage"], now["zero_stage"]
    if stages[0] != stages[1] and not set(stages) <= {1, 2}:
        return f"ZeRO-{stages[0]} optimizer state cannot become ZeRO-{stages[1]}'s; use --zero-stage {stages[0]}"
    if stages[0] in (0, 3):
        return f"a ZeRO-{stages[0]} checkpoint resumes under its own layout only; ZeRO-1 and ZeRO-2 checkpoints move"
    return None


def load_moved(checkpoint: Path, engine: deepspeed.DeepSpeedEngine) -> None:
    """Restore a checkpoint of another layout into the engine. Every rank must call this.

    Raises:
        UserError: files that cannot be read or converted.
    """
    universal = checkpoint.parent / f".universal-{checkpoint.name}"
    waiting = dist.new_group(backend="gloo", timeout=_LONGEST_CONVERSION)
    outcome: list[str | None] = [None]
    if dist.get_rank() == 0:
        print(f"megasink: {checkpoint} was saved under another layout; converting it to this one", flush=True)
        try:
            convert_to_universal(checkpoint, universal)
        except UserError as error:
            outcome = [str(error)]
    dist.broadcast_object_list(outcome, src=0, group=waiting)
    if outcome[0] is not None:
        raise UserError(outcome[0])
    settings = engine._config  # the flag is read at each load; DeepSpeed has no argument for it
    settings.load_universal_checkpoint = True
    try:
        with only_data():
            path, _ = engine.load_checkpoint(str(universal.parent), tag=universal.name)
    finally:
        settings.load_universal_checkpoint = False
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(universal, ignore_errors=True)
    if path is None:
        raise UserError(
            f"{checkpoint}: could not be moved to this layout; resume it under the layout it was saved with"
        )


def convert_to_universal(checkpoint: Path, universal: Path) -> None:
    """Write DeepSpeed's universal form of a checkpoint to the folder `universal` (replaced if it exists).

    Raises:
        UserError: missing or damaged files, or no space.
    """
    shutil.rmtree(universal, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(checkpoint),
        output_folder=str(universal),
        num_extract_workers=1,  # in this process: forking one that holds NCCL or OpenMP threads can hang
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), only_data():
            ds_to_universal(arguments)
    except Exception as error:  # whatever DeepSpeed makes of a damaged file
        shutil.rmtree(universal, ignore_errors=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{checkpoint}: DeepSpeed's files cannot be converted to another layout ({reason}); resume under the "
            "layout it was saved with, or use an older checkpoint"
        ) from None
