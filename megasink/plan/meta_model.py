"""A rank's part of the real model on the meta device: true shapes, no memory, no other ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megasink.config import RunConfig
from megasink.model.block import Block
from megasink.model.llama import Layer, blocks_of, llama_layers, stage_blocks, token_losses
from megasink.parallel.layout import ParallelLayout, build_layout
from megasink.parallel.pipeline import layer_bounds


@dataclass
class MetaStage:
    """One rank's layers of one pipeline stage. Only inside `meta_stage`: the layers talk through its groups."""

    config: RunConfig
    layout: ParallelLayout
    modules: nn.ModuleList
    calls: list[Callable[[Tensor], Tensor]]

    @property
    def is_first(self) -> bool:
        return self.layout.pipeline.rank == 0

    @property
    def is_last(self) -> bool:
        return self.layout.pipeline.rank == self.layout.pipeline.size - 1

    def blocks(self) -> list[Block]:
        return blocks_of(self.modules)

    def hidden_shape(self) -> tuple[int, int, int]:
        """[B, T that the residual stream of this rank sees, H]."""
        model, layout = self.config.model, self.layout
        parts = layout.context.size * (layout.tensor.size if layout.sequence_parallel else 1)
        return self.config.training.micro_batch_size, model.seq_length // parts, model.hidden_size

    def inputs(self) -> Tensor:
        """What the stage is given of one micro-batch: int64 tokens [B, T of this rank], or hidden states."""
        if self.is_first:
            length = self.config.model.seq_length // self.layout.context.size
            return torch.empty(self.config.training.micro_batch_size, length, dtype=torch.int64, device="meta")
        return torch.empty(self.hidden_shape(), dtype=dtype_of(self.config), device="meta")

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states, or of the last stage logits [B, T of this rank, padded V / tensor-parallel ranks]."""
        for call in self.calls:
            states = call(states)
        return states

    def losses(self, logits: Tensor) -> Tensor:
        """fp32 [B, T of this rank], after the last stage."""
        labels = torch.empty(logits.shape[:2], dtype=torch.int64, device="meta")
        return token_losses(logits, labels, self.config.model, self.layout)

    def num_parameters(self) -> int:
        """Elements this rank holds, padding of the vocabulary included."""
        return sum(parameter.numel() for parameter in self.modules.parameters())


@contextmanager
def meta_stage(config: RunConfig, stage: int, tensor_rank: int = 0) -> Iterator[MetaStage]:
    """The stage as its rank `tensor_rank` of data-parallel rank 0 holds it; `config.model.vocab_size` is known.

    The process must be in no job: torch's `fake` process group, which sends nothing, stands for the other ranks.
    """
    model, parallel = config.model, config.parallel
    tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    stages = parallel.pipeline_model_parallel_size
    world_size = tensor * context * stages
    dist.init_process_group("fake", rank=stage * context * tensor + tensor_rank, world_size=world_size)
    try:
        layout = build_layout(tensor, stages, parallel.sequence_parallel, context)
        # torch has no documents' attention on the meta device; the shapes are the same without
        model = replace(model, reset_attention_mask=False, reset_position_ids=False)
        bounds = layer_bounds(stage_blocks(model, parallel))
        with torch.device("meta"):
            layers = llama_layers(model, layout)[bounds[stage] : bounds[stage + 1]]
            modules, calls = _build(layers, dtype_of(config))
        yield MetaStage(replace(config, model=model), layout, modules, calls)
    finally:
        dist.destroy_process_group()


def dtype_of(config: RunConfig) -> torch.dtype:
    return torch.bfloat16 if config.training.precision == "bf16" else torch.float32


def _build(layers: list[Layer], dtype: torch.dtype) -> tuple[nn.ModuleList, list[Callable[[Tensor], Tensor]]]:
    """Layers that share a tied key share one module, as in the real wrappers."""
    modules, calls, tied = nn.ModuleList(), [], {}
    for layer in layers:
        module = tied.get(layer.tied_key)
        if module is None:
            module = layer.module(*layer.arguments).to(dtype)
            modules.append(module)
            if layer.tied_key is not None:
                tied[layer.tied_key] = module
        calls.append(module if layer.forward is None else _bind(layer.forward, module))
    return modules, calls


def _bind(forward: Callable[[nn.Module, Tensor], Tensor], module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda states: forward(module, states)


def forward_shapes(config: RunConfig, stage: int) -> str:
    """One micro-batch through a stage, as a line: what it holds, what goes in, what comes out."""
    with torch.no_grad(), meta_stage(config, stage) as held:
        inputs = held.inputs()
        outputs = held.forward(inputs)
        shapes = f"{'tokens' if held.is_first else 'hidden'} {list(inputs.shape)} -> "
        if held.is_last:
            shapes += f"logits {list(outputs.shape)} -> losses {list(held.losses(outputs).shape)}"
        else:
            shapes += f"hidden {list(outputs.shape)}"
        blocks = stage_blocks(held.config.model, config.parallel)[stage]
        return f"{blocks} blocks, {held.num_parameters() / 1e9:.3f}B parameters a rank, {shapes}"
