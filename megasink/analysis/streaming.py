"""Weights that are there only while their block runs: a forward pass in the memory of one block."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from megasink.analysis.families import empty_transformers
from megasink.analysis.subject import MegasinkSubject, Subject, TransformersSubject
from megasink.checkpoint.weights import WeightReader, hugging_face_name
from megasink.config import ModelConfig
from megasink.errors import UserError
from megasink.model.block import Block
from megasink.model.llama import Llama
from megasink.parallel.layout import ParallelLayout

ReadBlock = Callable[[int], dict[str, Tensor]]
"""Layer -> its parameters by name within the block, on any device and in any precision."""


def stream_megasink(config: ModelConfig, folder: Path, device: torch.device) -> MegasinkSubject:
    """Our Llama with the folder's weights, read from safetensors block by block at each forward pass."""
    with torch.device("meta"):
        model = Llama(config)
    names = {name: hugging_face_name(config, name) for name, _ in model.named_parameters()}
    subject = MegasinkSubject(model)
    with WeightReader(folder) as reader:
        _load_rest(subject, lambda name: reader.read(names[name]), device)
    _stream(subject, lambda layer: _read_block(folder, subject.blocks[layer], layer), device, str(folder))
    return subject


def stream_untrained_megasink(config: ModelConfig, seed: int, device: torch.device) -> MegasinkSubject:
    """Our Llama as training initialises it, each block drawn anew when it runs."""
    with torch.device("meta"):
        subject = MegasinkSubject(Llama(config))
    outside = Llama(replace(config, num_layers=0), seed=seed)  # embedding, norm and output do not know the depth
    drawn = dict(zip(_rest(subject), outside.parameters(), strict=True))
    _load_rest(subject, drawn.__getitem__, device)
    layout = ParallelLayout()
    _stream(subject, lambda layer: dict(Block(config, layout, layer, seed).named_parameters()), device, "untrained")
    return subject


def stream_transformers(folder: Path, shape: ModelConfig, device: torch.device) -> TransformersSubject:
    """A Llama-shaped model of transformers, read from safetensors block by block at each forward pass."""
    subject = empty_transformers(folder, shape, device)
    with WeightReader(folder) as reader:
        _load_rest(subject, reader.read, device)
    subject.module.tie_weights()
    _stream(subject, lambda layer: _read_block(folder, subject.blocks[layer], layer), device, str(folder))
    return subject


def stream_untrained_transformers(folder: Path, shape: ModelConfig, device: torch.device) -> TransformersSubject:
    """The same with weights that transformers draws, each block from a seed of its own."""
    subject = empty_transformers(folder, shape, device)
    model = subject.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in ("model.embed_tokens", "model.norm", "lm_head"):
            module = model.get_submodule(name).to_empty(device="cpu")
            module.apply(model._init_weights)
            module.to(device).requires_grad_(False)
    model.tie_weights()

    def draw(layer: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(layer + 1)
            block = type(subject.blocks[layer])(model.config, layer)
            block.apply(model._init_weights)
        return dict(block.named_parameters())

    _stream(subject, draw, device, "untrained")
    return subject


def _read_block(folder: Path, block: nn.Module, layer: int) -> dict[str, Tensor]:
    """The file is opened anew each time: an open one keeps every page that was read in this process's memory."""
    with WeightReader(folder) as reader:
        return {name: reader.read(f"model.layers.{layer}.{name}") for name, _ in block.named_parameters()}


def _stream(subject: Subject, read: ReadBlock, device: torch.device, where: str) -> None:
    """Let each block fetch its weights as it begins and drop them as it ends."""
    checked: set[int] = set()
    for layer, block in enumerate(subject.blocks):
        shapes = {name: parameter.shape for name, parameter in block.named_parameters()}

        def fetch(block, _args, _kwargs, layer=layer, shapes=shapes) -> None:
            weights = {name: weight.to(device, torch.float32) for name, weight in read(layer).items()}
            for name, weight in weights.items():
                if weight.shape != shapes[name]:
                    raise UserError(f"{where}: {name} of layer {layer} has shape {list(weight.shape)}, another model's")
                if layer not in checked:
                    refuse_not_finite(weight, f"model.layers.{layer}.{name}", where)
            checked.add(layer)
            block.load_state_dict(weights, assign=True)
            block.requires_grad_(False)

        block.to("meta")
        block.register_forward_pre_hook(fetch, prepend=True, with_kwargs=True)
        block.register_forward_hook(lambda block, _args, _output: block.to("meta") and None, always_call=True)


def refuse_not_finite(weight: Tensor, name: str, where: str) -> None:
    """Raise UserError if a weight holds NaN or infinity."""
    if not weight.isfinite().all():
        raise UserError(f"{where}: {name} holds NaN or infinity; the run diverged, analyse an earlier checkpoint")


def _rest(subject: Subject) -> dict[str, nn.Parameter]:
    """Parameters outside the blocks, by name."""
    inside = {id(parameter) for block in subject.blocks for parameter in block.parameters()}
    return {name: p for name, p in subject.module.named_parameters() if id(p) not in inside}


def _load_rest(subject: Subject, read: Callable[[str], Tensor], device: torch.device) -> None:
    """Parameters outside the blocks, by their names in the module; a padded vocabulary is filled up with zeros."""
    for name, parameter in _rest(subject).items():
        weight = read(name).detach()
        refuse_not_finite(weight, name, "the checkpoint")
        whole = torch.zeros(parameter.shape, device=device)
        if weight.shape[1:] != whole.shape[1:] or len(weight) > len(whole):
            raise UserError(f"the checkpoint: {name} has shape {list(weight.shape)}, another model's")
        whole[: len(weight)] = weight
        owner, _, attribute = name.rpartition(".")
        setattr(subject.module.get_submodule(owner), attribute, nn.Parameter(whole, requires_grad=False))
