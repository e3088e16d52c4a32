"""The Llama as a list of layers, and the wrapper that runs the whole list in one module."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from megasink.config import ModelConfig, ParallelConfig
from megasink.model.block import Block, States, join_states, split_states
from megasink.model.norm import RMSNorm
from megasink.parallel.cross_entropy import vocab_parallel_cross_entropy
from megasink.parallel.layers import VocabParallelEmbedding, enter_tensor_parallel
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.main_gradient import summing_linear
from megasink.parallel.pipeline import balanced_blocks
from megasink.parallel.shard import normal_

TIED_EMBEDDING = "embed"


class Embedding(VocabParallelEmbedding):
    """Tokens [B, T] -> [B, T, H], document ids pass through; weights drawn from (seed, name) unless `seed` is None."""

    weight_name = "embed_tokens.weight"

    def __init__(self, config: ModelConfig, layout: ParallelLayout, seed: int | None = None):
        super().__init__(config.padded_vocab_size, config.hidden_size, layout, config.vocab_size)
        if seed is not None:
            normal_(self.weight, self.initial_std(config), seed, self.weight_name)

    @staticmethod
    def initial_std(config: ModelConfig) -> float:
        """Of its weights."""
        return config.embedding_init_method_std or config.init_method_std

    def forward(self, states: States) -> States:
        tokens, document_ids = split_states(states)
        return join_states(super().forward(tokens), document_ids)


class FinalNorm(RMSNorm):
    """The last RMSNorm; document ids end here."""

    def forward(self, states: States) -> Tensor:
        return super().forward(split_states(states)[0])


class OutputLayer(Embedding):
    """Logits of this rank's columns of the vocabulary: [B, T, H] -> [B, T, padded V / ranks]."""

    weight_name = "lm_head.weight"

    @staticmethod
    def initial_std(config: ModelConfig) -> float:
        return config.init_method_std

    def forward(self, hidden_states: Tensor) -> Tensor:
        return project_to_vocabulary(self, hidden_states)


def project_to_vocabulary(embedding: VocabParallelEmbedding, hidden_states: Tensor) -> Tensor:
    """Logits through an embedding's weight (its own, or the tied input embedding's)."""
    hidden_states = enter_tensor_parallel(hidden_states, embedding.layout)
    if embedding.main_gradient is not None:
        return summing_linear(hidden_states, embedding.weight, [embedding.main_gradient])
    return F.linear(hidden_states, embedding.weight)


@dataclass(frozen=True)
class Layer:
    """One entry of the model's list. Layers that share `tied_key` share one module; `forward` replaces its call."""

    module: type[nn.Module]
    arguments: tuple
    tied_key: str | None = None
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None


def llama_layers(config: ModelConfig, layout: ParallelLayout, seed: int | None = None) -> list[Layer]:
    """embedding, num_layers blocks, final norm, output layer. `seed` None leaves weights uninitialised."""
    tied = None if config.untie_embeddings_and_output_weights else TIED_EMBEDDING
    embedding = Layer(Embedding, (config, layout, seed), tied)
    blocks = [Layer(Block, (config, layout, index, seed)) for index in range(config.num_layers)]
    norm = Layer(FinalNorm, (config.hidden_size, config.norm_epsilon, layout))
    if tied is None:
        output = Layer(OutputLayer, (config, layout, seed))
    else:
        output = Layer(Embedding, embedding.arguments, tied, project_to_vocabulary)
    return [embedding, *blocks, norm, output]


def stage_blocks(config: ModelConfig, parallel: ParallelConfig) -> list[int]:
    """Blocks of each pipeline stage: as --pipeline-split says, otherwise balanced by parameters."""
    if parallel.pipeline_split is not None:
        return parallel.split_blocks()
    heads, groups, hidden = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    block = hidden * (config.kv_channels * 2 * (heads + groups) + 3 * config.ffn_hidden_size + 2)
    embedding = hidden * config.padded_vocab_size
    return balanced_blocks(
        config.num_layers, parallel.pipeline_model_parallel_size, block, before=embedding, after=hidden + embedding
    )


def parameter_prefixes(config: ModelConfig) -> dict[str, str]:
    """Module name in either wrapper -> Hugging Face name, e.g. `3` -> `model.layers.2`."""
    prefixes = {str(index + 1): f"model.layers.{index}" for index in range(config.num_layers)}
    prefixes[str(config.num_layers + 1)] = "model.norm"
    if config.untie_embeddings_and_output_weights:
        prefixes |= {"0": "model.embed_tokens", str(config.num_layers + 2): "lm_head"}
    else:
        prefixes[f"tied_modules.{TIED_EMBEDDING}"] = "model.embed_tokens"
    return prefixes


class Llama(nn.Module):
    """All layers in one module, with the parameter names of DeepSpeed's PipelineModule."""

    def __init__(self, config: ModelConfig, layout: ParallelLayout | None = None, seed: int | None = None):
        super().__init__()
        self.config = config
        self.layout = layout or ParallelLayout()
        self.tied_modules = nn.ModuleDict()
        self.calls: list[Callable[[Tensor], Tensor]] = []
        for index, layer in enumerate(llama_layers(config, self.layout, seed)):
            if layer.tied_key is None:
                module = layer.module(*layer.arguments)
                self.add_module(str(index), module)
            else:
                if layer.tied_key not in self.tied_modules:
                    self.tied_modules[layer.tied_key] = layer.module(*layer.arguments)
                module = self.tied_modules[layer.tied_key]
            self.calls.append(module if layer.forward is None else _bind(layer.forward, module))

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """tokens int64 [B, T], document ids int [B, T] -> logits [B, T, padded V / tensor-parallel ranks]."""
        states = join_states(tokens, document_ids)
        for call in self.calls:
            states = call(states)
        return states


def blocks_of(model: nn.Module) -> list[Block]:
    """The blocks this rank holds, in order."""
    return [module for module in model.modules() if isinstance(module, Block)]


def token_losses(
    logits: Tensor, labels: Tensor, config: ModelConfig, layout: ParallelLayout, fused: bool = False
) -> Tensor:
    """Cross entropy per token, fp32 [B, T]; labels int64 [B, T], -100 where a token does not count; `fused`: by
    kernels of ours on a GPU."""
    return vocab_parallel_cross_entropy(logits, labels, config.vocab_size, layout.tensor, fused)


def _bind(forward: Callable[[nn.Module, Tensor], Tensor], module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda states: forward(module, states)
