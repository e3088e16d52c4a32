"""Hugging Face folders in and out: the same weights under the same names, another configuration file beside them."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megasink.checkpoint import modeling_megasink
from megasink.checkpoint.folders import step_folders
from megasink.checkpoint.hugging_face_config import CONFIG_FILE, read_model_config, write_model_config
from megasink.checkpoint.manifest import check_weights
from megasink.checkpoint.tokenizer_files import copy_tokenizer
from megasink.checkpoint.weights import SINGLE_FILE, WeightReader, expected_weights
from megasink.config import ModelConfig, RunConfig
from megasink.config.cli import load_yaml, to_yaml
from megasink.errors import UserError

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass
class ConvertRequest:
    """Convert a checkpoint to a Hugging Face folder, or a Hugging Face Llama folder to a checkpoint."""

    input: str
    """Run folder, one of its checkpoints, or a Hugging Face folder with safetensors."""
    output: str
    """Folder to make; it must not exist."""
    to: Literal["hf", "megasink"] = "hf"
    """What to make."""
    dtype: Literal["as-stored", "float32", "bfloat16"] = "as-stored"
    """Number format of the written weights; V-scale's theta stays fp32."""
    tokenizer: str | None = None
    """Tokenizer to put into a Hugging Face folder, or none; default: the one the run was configured with."""


def convert(request: ConvertRequest) -> Path:
    """Do it; returns the folder made. It appears whole or not at all.

    Raises:
        UserError: unreadable or unfitting input, or an output that exists.
    """
    output = Path(request.output)
    if output.exists():
        raise UserError(f"--output {output}: exists; name a folder to make")
    temporary = output.parent / f".tmp-{output.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        make = _make_hugging_face if request.to == "hf" else _make_checkpoint
        make(request, temporary)
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full; reading has its own messages
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output {output}: {reason}; choose a folder that can be written") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder itself, or the newest one of a run folder.

    Raises:
        UserError: no such folder, or a newest one that is damaged: an older model in its place might be the untrained.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder or one of its checkpoints/step_* folders")
    newest = [path, *step_folders(path / "checkpoints")][-1]
    if newest != path and not (newest / "state.json").is_file():
        raise UserError(f"{newest}: damaged, no state.json; name another checkpoints/step_* folder of the run")
    return newest


def read_checkpoint_config(checkpoint: Path) -> RunConfig:
    """Of the run that wrote this `checkpoints/step_*` folder. Raises UserError where it is missing or incomplete."""
    if not (checkpoint / "config.yaml").is_file():
        raise UserError(f"{checkpoint}: no config.yaml; give a run folder or one of its checkpoints/step_* folders")
    config = load_yaml(RunConfig, checkpoint / "config.yaml")
    if config.model.vocab_size is None:
        raise UserError(f"{checkpoint / 'config.yaml'}: vocab_size is not set; copy the config.yaml the run wrote")
    return config


def read_weights(folder: Path, config: ModelConfig, dtype: str = "as-stored") -> dict[str, Tensor]:
    """Every parameter of the model under its Hugging Face name, shapes checked, nothing left over.

    Raises:
        UserError: missing, damaged or unknown weights.
    """
    check_weights(folder)
    shapes = expected_weights(config)
    weights = {}
    with WeightReader(folder) as reader:
        ignored = {name for name in reader.names() if name.endswith("rotary_emb.inv_freq")}
        if not config.untie_embeddings_and_output_weights:
            ignored.add("lm_head.weight")  # some tied folders store it a second time
        for name in set(reader.names()) - ignored - set(shapes):
            raise UserError(f"{folder}: holds {name}, which this Llama does not have; another kind of model")
        for name, shape in shapes.items():
            weight = reader.read(name)
            if list(weight.shape) != shape:
                raise UserError(f"{folder}: {name} has shape {list(weight.shape)}, its configuration asks for {shape}")
            if name.endswith("theta"):
                weight = weight.float()
            elif dtype != "as-stored":
                weight = weight.to(getattr(torch, dtype))
            weights[name] = weight.contiguous()
    return weights


def _make_hugging_face(request: ConvertRequest, folder: Path) -> None:
    checkpoint = find_checkpoint(Path(request.input))
    run = read_checkpoint_config(checkpoint)
    config = run.model
    weights = read_weights(checkpoint, config, request.dtype)
    special_tokens = copy_tokenizer(request.tokenizer or run.data.tokenizer, folder)
    dtype = _DTYPES[weights["model.embed_tokens.weight"].dtype]
    content = write_model_config(config, dtype, special_tokens)
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if config.v_scale == "on":
        shutil.copy(modeling_megasink.__file__, folder / "modeling_megasink.py")
    save_file(weights, folder / SINGLE_FILE, metadata={"format": "pt"})


def _make_checkpoint(request: ConvertRequest, folder: Path) -> None:
    source = Path(request.input)
    config = read_model_config(source)
    weights = read_weights(source, config, request.dtype)
    run = RunConfig(model=config)
    run.data.tokenizer = request.tokenizer
    save_file(weights, folder / SINGLE_FILE, metadata={"format": "pt"})
    (folder / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    state = {"step": 0, "consumed_samples": 0, "consumed_tokens": 0, "resumable": False, "converted_from": str(source)}
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
