"""Parameters that each rank holds, counted by formula; equal to those of the model on the meta device (tests/plan)."""

from collections import Counter
from dataclasses import dataclass

from megasink.config import ModelConfig, ParallelConfig
from megasink.model.llama import stage_blocks


@dataclass(frozen=True)
class StageParameters:
    """Elements that one tensor-parallel rank of a pipeline stage holds (all its ranks hold equally many).

    `whole` are those of them that every tensor-parallel rank has: norms, and key-value heads fewer than ranks.
    """

    blocks: int
    embedding: int
    attention: int
    mlp: int
    norms: int
    v_scale: int
    output: int
    whole: int
    matrices: int
    """Two-dimensional ones, in the optimizer group that decays."""

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.norms + self.v_scale + self.output


def stage_parameters(model: ModelConfig, parallel: ParallelConfig) -> list[StageParameters]:
    """Of every pipeline stage. Column, row and vocabulary cuts as in Megatron-LM (arXiv 1909.08053, section 3)."""
    blocks = stage_blocks(model, parallel)
    last = len(blocks) - 1
    return [_stage(model, parallel, count, stage == 0, stage == last) for stage, count in enumerate(blocks)]


def _stage(model: ModelConfig, parallel: ParallelConfig, blocks: int, first: bool, last: bool) -> StageParameters:
    ranks, hidden, width = parallel.tensor_model_parallel_size, model.hidden_size, model.kv_channels
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    groups_here = groups if groups < ranks else groups // ranks
    key_value = blocks * hidden * width * 2 * groups_here
    attention = blocks * hidden * width * 2 * (heads // ranks) + key_value
    mlp = blocks * 3 * hidden * (model.ffn_hidden_size // ranks)
    norms = hidden * (2 * blocks + (1 if last else 0))
    v_scale = blocks * groups_here if model.v_scale == "on" else 0
    table = hidden * (model.padded_vocab_size // ranks)
    tied_to_embedding = first and not model.untie_embeddings_and_output_weights  # one module for both
    embedding, output = table if first else 0, table if last and not tied_to_embedding else 0
    return StageParameters(
        blocks=blocks,
        embedding=embedding,
        attention=attention,
        mlp=mlp,
        norms=norms,
        v_scale=v_scale,
        output=output,
        whole=norms + (key_value + v_scale if groups < ranks else 0),
        matrices=embedding + attention + mlp + output,
    )


def parameter_sizes(model: ModelConfig, parallel: ParallelConfig, stage: int) -> Counter[int]:
    """Elements of a parameter -> how many parameters of that size a rank of the stage holds."""
    ranks, hidden, width = parallel.tensor_model_parallel_size, model.hidden_size, model.kv_channels
    here = stage_parameters(model, parallel)[stage]
    groups = model.num_key_value_heads
    groups_here = groups if groups < ranks else groups // ranks
    sizes: Counter[int] = Counter()
    sizes[hidden * width * model.num_attention_heads // ranks] += 2 * here.blocks
    sizes[hidden * width * groups_here] += 2 * here.blocks
    sizes[hidden * model.ffn_hidden_size // ranks] += 3 * here.blocks
    sizes[hidden] += here.norms // hidden
    if here.v_scale:
        sizes[groups_here] += here.blocks
    for table in (here.embedding, here.output):
        if table:
            sizes[table] += 1
    return sizes
