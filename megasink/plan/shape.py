"""Sizes that the formulas share: one rank's part of a micro-batch and of a block."""

from dataclasses import dataclass

from megasink.config import RunConfig


@dataclass(frozen=True)
class Shape:
    """Of one rank. Widths are elements per token.

    Attributes:
        tokens: B x T of the rank's part of each sequence, as its matrix products see them.
        residual_tokens: those the residual stream and the norms see; fewer under sequence parallelism.
        query, key_value: width of the rank's query heads, and of its key heads (its value heads' is the same).
        ffn: of the rank's part of the MLP's inner width.
        vocabulary: the rank's columns of the logits, padding included.
        element: bytes of an element in the training dtype.
    """

    tokens: int
    residual_tokens: int
    hidden: int
    query: int
    key_value: int
    heads: int
    key_value_heads: int
    ffn: int
    vocabulary: int
    element: int
    repeats: int
    """Query heads that share a key-value head; attention sees keys and values repeated so often."""


def weights_are_flat(config: RunConfig) -> bool:
    """Whether weights lie behind each other in a flat buffer, so that the query, key and value weights, and gate and
    up, are one matrix without a copy (megasink.parallel.layers.joined_weight)."""
    return config.parallel.zero_stage in (1, 2)


def copied_weights(config: RunConfig) -> int:
    """Elements of a block's weights that are copied together; replicated key-value heads are even in a flat buffer."""
    shape = shape_of(config)
    query_key_value = shape.hidden * (shape.query + 2 * shape.key_value)
    if weights_are_flat(config):
        replicated = config.model.num_key_value_heads < config.parallel.tensor_model_parallel_size
        return query_key_value if replicated else 0
    return query_key_value + 2 * shape.hidden * shape.ffn


def micro_batches_of(config: RunConfig, replicas: int) -> int:
    """Micro-batches of a step on each of so many (data x context parallel) replicas."""
    training = config.training
    return training.global_batch_size * config.parallel.context_parallel_size // (training.micro_batch_size * replicas)


def shape_of(config: RunConfig) -> Shape:
    model, parallel = config.model, config.parallel
    ranks, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    tokens = config.training.micro_batch_size * model.seq_length // context
    key_value_heads = max(1, model.num_key_value_heads // ranks)
    heads = model.num_attention_heads // ranks
    return Shape(
        tokens=tokens,
        residual_tokens=tokens // ranks if parallel.sequence_parallel else tokens,
        hidden=model.hidden_size,
        query=heads * model.kv_channels,
        key_value=key_value_heads * model.kv_channels,
        heads=heads,
        key_value_heads=key_value_heads,
        ffn=model.ffn_hidden_size // ranks,
        vocabulary=model.padded_vocab_size // ranks,
        element=2 if config.training.precision == "bf16" else 4,
        repeats=heads // key_value_heads,
    )
