"""Which rank holds what: blocks of a pipeline stage, heads, columns and vocabulary rows of a tensor-parallel rank."""

from dataclasses import dataclass

from megasink.config import RunConfig
from megasink.model.llama import stage_blocks


@dataclass(frozen=True)
class StageHoldings:
    """Half-open ranges of global ranks and of blocks; whether the embedding and the output layer are here too."""

    ranks: tuple[int, int]
    blocks: tuple[int, int]
    embedding: bool
    output: bool


@dataclass(frozen=True)
class TensorHoldings:
    """Half-open ranges of each block's query heads, key-value heads and MLP columns, and of the vocabulary's rows."""

    query_heads: tuple[int, int]
    key_value_heads: tuple[int, int]
    """Those it uses; where there are fewer than ranks, each rank has the weights of all."""
    mlp_columns: tuple[int, int]
    vocabulary_rows: tuple[int, int]


def stage_holdings(config: RunConfig, replicas: int) -> list[StageHoldings]:
    """Of each pipeline stage. `replicas`: data x context parallel ranks."""
    counts = stage_blocks(config.model, config.parallel)
    ranks, last = config.parallel.tensor_model_parallel_size * replicas, len(counts) - 1
    return [
        StageHoldings(
            ranks=(stage * ranks, (stage + 1) * ranks),
            blocks=(sum(counts[:stage]), sum(counts[: stage + 1])),
            embedding=stage == 0,
            output=stage == last,
        )
        for stage in range(len(counts))
    ]


def tensor_holdings(config: RunConfig) -> list[TensorHoldings]:
    """Of each tensor-parallel rank: global rank modulo their number."""
    model, ranks = config.model, config.parallel.tensor_model_parallel_size

    def part(count: int, rank: int) -> tuple[int, int]:
        return rank * count // ranks, max(rank * count // ranks + 1, (rank + 1) * count // ranks)

    return [
        TensorHoldings(
            query_heads=part(model.num_attention_heads, rank),
            key_value_heads=part(model.num_key_value_heads, rank),
            mlp_columns=part(model.ffn_hidden_size, rank),
            vocabulary_rows=part(model.padded_vocab_size, rank),
        )
        for rank in range(ranks)
    ]
