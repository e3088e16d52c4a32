"""The statistics that are cheap enough for every step, from one micro-batch's taps."""

from torch import Tensor

from megasink.model.taps import BlockTaps
from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import ParallelLayout
from megasink.stats.measures import (
    Tokens,
    first_over_early,
    first_over_others,
    gradient_sink_ratio,
    strongest_gradient_sink,
)
from megasink.stats.reduce import Owner, Sums


def add_light(sums: Sums, taps: BlockTaps, tokens: Tokens, layout: ParallelLayout) -> None:
    """`taps` as BlockTaps describes them, with the local layers in front, [L, B, ...], and T whole on every rank."""
    add_counts(sums, tokens, layers=len(taps.value))
    add_head_norms(sums, "value_grad_norm", Owner.KEY_VALUE_HEADS, taps.value_grad, tokens, scale_power=1)
    add_head_norms(sums, "value_norm", Owner.KEY_VALUE_HEADS, taps.value, tokens, scale_power=0)
    add_norm_over_heads(sums, "value_grad_norm_all", taps.value_grad, tokens, layout, Owner.KEY_VALUE_HEADS)
    add_drain(sums, "value", taps.value, tokens)

    sums.add("attention_sink", Owner.HEADS, taps.attention_sink.double().sum(dim=1), over="_queries")
    sums.maximum("attention_lse_max", Owner.HEADS, taps.attention_lse_max.amax(dim=1))

    if taps.theta is not None:  # alike in every micro-batch and on every replica
        sums.maximum("theta", Owner.KEY_VALUE_HEADS, taps.theta)

    for name, squares in (("hidden", taps.block_output), ("mlp_out", taps.mlp_output)):
        norms = squares.sqrt()
        sums.add(f"{name}_norm", Owner.LAYER, tokens.bin_sums(norms), over="_tokens")
        ratios = tokens.of_several(first_over_early(norms, tokens))
        sums.add(f"{name}_t0_over_early", Owner.LAYER, ratios.sum(dim=-1), over="_documents")

    g2 = taps.attention_norm_grad.double().sqrt()
    strongest, position = strongest_gradient_sink(g2, tokens)
    for name, figures in (
        ("gradient_sink_ratio", gradient_sink_ratio(g2, tokens)),
        ("gradient_sink_ratio_early", first_over_early(g2, tokens)),
        ("gradient_sink_ratio_strongest", strongest),
        ("gradient_sink_position", position),
    ):
        sums.add_per_document(name, tokens.of_several(figures), tokens.of_several(tokens.sequence))


def add_counts(sums: Sums, tokens: Tokens, layers: int) -> None:
    """How many tokens, queries after the first and documents of at least two tokens the means are over."""
    several = tokens.of_several(tokens.size)
    sums.packed_documents = tokens.document is not None
    sums.add("_tokens", Owner.LAYER, tokens.bin_counts().expand(layers, -1))
    sums.add("_queries", Owner.LAYER, (tokens.size - 1).sum().expand(layers))
    sums.add("_documents", Owner.LAYER, (several > 0).sum().expand(layers))


def add_head_norms(sums: Sums, name: str, owner: Owner, squares: Tensor, tokens: Tokens, scale_power: int) -> None:
    """Mean norm of each head by position; `squares` [L, B, T, heads]. `scale_power`: as in Sums.add."""
    norms = squares.sqrt().permute(0, 3, 1, 2)
    sums.add(name, owner, tokens.bin_sums(norms), over="_tokens", scale_power=scale_power)


def add_norm_over_heads(
    sums: Sums, name: str, squares: Tensor, tokens: Tokens, layout: ParallelLayout, owner: Owner
) -> None:
    """Mean gradient norm over all heads of all tensor-parallel ranks together: `squares` [L, B, T, heads] are summed
    before the root."""
    squares = squares.sum(dim=-1)
    if owner is Owner.KEY_VALUE_HEADS and not sums.split.owns_key_value_heads:
        squares = squares * 0.0
    norms = all_reduce(squares, layout.tensor).sqrt()
    sums.add(name, Owner.LAYER, tokens.bin_sums(norms), over="_tokens", scale_power=1)


def add_drain(sums: Sums, name: str, squares: Tensor, tokens: Tokens) -> None:
    """Value drain per head, mean of ratios; and the mean norm at positions > 0, for the ratio of means; `squares`
    [L, B, T, K]."""
    norms = squares.sqrt().permute(0, 3, 1, 2)
    drain = tokens.of_several(first_over_others(norms, tokens))
    sums.add(f"{name}_drain", Owner.KEY_VALUE_HEADS, drain.sum(dim=-1), over="_documents")
    others = tokens.document_sums(norms * (tokens.position > 0)).sum(dim=-1)
    sums.add(f"{name}_norm_others", Owner.KEY_VALUE_HEADS, others, over="_queries")
