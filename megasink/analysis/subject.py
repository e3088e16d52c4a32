"""The model under analysis, megasink's own Llama or one of transformers': what measuring needs to know of either."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from operator import attrgetter
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.model.taps import widen
from megasink.stats.attach import BlockNames, attach_blocks
from megasink.stats.recorder import SinkRecorder


class Subject(Protocol):
    """A model on its device, whose parameters need no gradients."""

    module: nn.Module
    shape: ModelConfig
    blocks: list[nn.Module]
    names: BlockNames
    """Where each block has its parts."""
    keeps_documents_apart: bool
    """Whether `token_losses` takes document ids."""
    exact_in_double: bool
    """Whether `copy_in_double` computes all of it in float64."""

    def recording(self) -> AbstractContextManager[SinkRecorder]:
        """A recorder whose `blocks` ask their attribute `recorder` for taps, inside the context."""

    def token_losses(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Cross entropy of each next token: int64 [B, T + 1], document ids int [B, T] -> fp32 at least, [B, T]."""

    def copy_in_double(self) -> "Subject":
        """A copy in float64 on the CPU (the GPU's attention kernels know no float64)."""


class MegasinkSubject:
    """Our own Llama."""

    keeps_documents_apart = True
    exact_in_double = True
    names = BlockNames()

    def __init__(self, model: Llama):
        self.module = model
        self.shape = model.config
        self.blocks = blocks_of(model)

    @contextmanager
    def recording(self) -> Iterator[SinkRecorder]:
        yield SinkRecorder(self.shape, self.module.layout, self.blocks)
        for block in self.blocks:
            block.recorder = None

    def token_losses(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        logits = self.module(tokens[:, :-1], document_ids)
        return token_losses(logits, tokens[:, 1:], self.shape, self.module.layout)

    def copy_in_double(self) -> "MegasinkSubject":
        double = Llama(self.shape)
        double.load_state_dict(self.module.state_dict())
        return MegasinkSubject(double.double().requires_grad_(False))


class TransformersSubject:
    """A causal language model of transformers with blocks h -> h + attention(norm(h)) -> + mlp(norm(.))."""

    keeps_documents_apart = False
    exact_in_double = False  # its norms and RoPE are fp32 in any precision

    def __init__(self, model: nn.Module, shape: ModelConfig, blocks: list[nn.Module], names: BlockNames):
        self.module = model
        self.shape = shape
        self.blocks = blocks
        self.names = names

    def recording(self) -> AbstractContextManager[SinkRecorder]:
        return attach_blocks(self.blocks, self.shape, self.names)

    def token_losses(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        assert document_ids is None, "transformers' models are given whole sequences"
        logits = self.module(input_ids=tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(widen(logits).transpose(1, 2), tokens[:, 1:], reduction="none")

    def copy_in_double(self) -> "TransformersSubject":
        places = {id(module): name for name, module in self.module.named_modules()}
        double = deepcopy(self.module).cpu().double()
        blocks = [double.get_submodule(places[id(block)]) for block in self.blocks]
        return TransformersSubject(double, self.shape, blocks, self.names)


def device_of(subject: Subject) -> torch.device:
    return next(parameter for parameter in subject.module.parameters() if not parameter.is_meta).device


def part_of(subject: Subject, layer: int, name: str) -> nn.Module:
    """A part of one block by its attribute in BlockNames, e.g. `value`."""
    return attrgetter(getattr(subject.names, name))(subject.blocks[layer])
