"""Whole weights under Hugging Face names, in safetensors, from and to a model cut in any way.

The vocabulary is stored unpadded. With pipeline stages each stage writes one file and `model.safetensors.index.json`
names them (Hugging Face's sharded form); without, there is the single file `model.safetensors`.
"""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from megasink.checkpoint.host_copy import finish_host_copies, to_host
from megasink.config import ModelConfig
from megasink.errors import UserError
from megasink.model.llama import Llama, parameter_prefixes
from megasink.parallel.layout import ParallelLayout

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def hugging_face_name(config: ModelConfig, name: str) -> str:
    """`3.self_attn.q_proj.weight` -> `model.layers.2.self_attn.q_proj.weight`."""
    prefixes = parameter_prefixes(config)
    module = next(prefix for prefix in prefixes if name.startswith(f"{prefix}."))
    return prefixes[module] + name.removeprefix(module)


def expected_weights(config: ModelConfig) -> dict[str, list[int]]:
    """Shape of every whole parameter by Hugging Face name, the vocabulary unpadded."""
    with torch.device("meta"):
        model = Llama(config)
    return {
        hugging_face_name(config, name): [parameter.shard.valid or parameter.shape[0], *parameter.shape[1:]]
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def gather_weights(model: nn.Module, config: ModelConfig, layout: ParallelLayout) -> dict[str, Tensor]:
    """CPU copies of this stage's whole parameters, empty but on tensor-parallel rank 0; every rank must call this."""
    weights = {}
    for name, parameter in model.named_parameters():
        shard = parameter.shard
        whole = _unpartitioned(parameter)
        if shard.dim is not None:
            pieces = [torch.empty_like(whole) for _ in range(shard.size)]
            dist.all_gather(pieces, whole.contiguous(), group=layout.tensor.group)
            whole = torch.cat(pieces, dim=shard.dim)
        if layout.tensor.rank == 0:
            if shard.valid is not None:
                whole = whole[: shard.valid]
            if name.endswith("v_scale.theta"):
                whole = whole.float()
            weights[hugging_face_name(config, name)] = to_host(whole)
    finish_host_copies()
    return weights


def _unpartitioned(parameter: nn.Parameter) -> Tensor:
    """This tensor-parallel rank's share, gathered where ZeRO-3 has cut it up over the replicas.

    DeepSpeed's own GatheredParameters puts the parameters away again as it ends, which its prefetching of the next
    step does not expect.
    """
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    own = parameter.ds_tensor.detach().to(parameter.device)
    pieces = [torch.empty_like(own) for _ in range(dist.get_world_size(parameter.ds_process_group))]
    dist.all_gather(pieces, own, group=parameter.ds_process_group)
    return torch.cat(pieces)[: parameter.ds_numel].view(parameter.ds_shape)


@torch.no_grad()
def load_weights(model: nn.Module, config: ModelConfig, directory: str | Path) -> None:
    """Fill this rank's share of the model from consolidated weights.

    Raises:
        UserError: missing or damaged file, missing parameter, wrong shape.
    """
    with WeightReader(directory) as reader:
        for name, parameter in model.named_parameters():
            shard = parameter.shard
            whole = torch.zeros(shard.whole_shape(parameter.shape), dtype=parameter.dtype)
            stored = reader.read(hugging_face_name(config, name))
            expected = [shard.valid or whole.shape[0], *whole.shape[1:]]
            if list(stored.shape) != expected:
                raise UserError(
                    f"{directory}: {hugging_face_name(config, name)} has shape {list(stored.shape)}, the model's "
                    f"configuration asks for {expected}; use the configuration the checkpoint was made with"
                )
            whole[: shard.valid] = stored
            parameter.copy_(shard.take(whole))


def weights_file(stage: int, stages: int) -> str:
    """The file of one pipeline stage's whole parameters."""
    return SINGLE_FILE if stages == 1 else f"model-{stage + 1:05d}-of-{stages:05d}.safetensors"


def save_index(directory: Path, stages: int) -> Path | None:
    """Name every stage's parameters in one index, which is returned; called once, when all stages have written."""
    if stages == 1:
        return None
    weight_map = {}
    for path in sorted(directory.glob(f"model-*-of-{stages:05d}.safetensors")):
        with safe_open(path, framework="pt") as stored:
            weight_map |= dict.fromkeys(stored.keys(), path.name)
    total = sum((directory / name).stat().st_size for name in set(weight_map.values()))
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    (directory / INDEX_FILE).write_text(text, encoding="utf-8")
    return directory / INDEX_FILE


class WeightReader:
    """Reads whole parameters by Hugging Face name from a folder of safetensors. A context manager."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.files: dict[str, safe_open] = {}
        index = self.directory / INDEX_FILE
        try:
            if index.exists():
                self.weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            else:
                self.weight_map = dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        except (ValueError, KeyError):
            raise UserError(f"{index}: not a safetensors index; the checkpoint is damaged") from None

    def __enter__(self) -> "WeightReader":
        return self

    def __exit__(self, *_) -> None:
        self.files.clear()

    def names(self) -> list[str]:
        return list(self.weight_map)

    def read(self, name: str) -> Tensor:
        """Raises UserError if there is no such parameter."""
        if name not in self.weight_map:
            raise UserError(f"{self.directory}: holds no {name}; the checkpoint belongs to another kind of model")
        return self._open(self.weight_map[name]).get_tensor(name)

    def _open(self, file_name: str) -> safe_open:
        if file_name not in self.files:
            path = self.directory / os.path.basename(file_name)
            try:
                self.files[file_name] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise UserError(f"{path}: no such file; give a checkpoint folder with safetensors weights") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged or not safetensors ({error})") from None
        return self.files[file_name]
