"""The rest of the statistics of docs/sink-stats.md, from one micro-batch's full taps."""

import torch
from torch import Tensor

from megasink.model.attention_patterns import GU_KEYS, GU_LENGTH
from megasink.model.taps import BlockTaps
from megasink.parallel.layout import ParallelLayout
from megasink.stats.light import add_drain, add_head_norms, add_norm_over_heads
from megasink.stats.measures import Tokens, input_norm_sums
from megasink.stats.reduce import Owner, Sums

PATHS = ("query", "key", "value")


def add_full(sums: Sums, taps: BlockTaps, tokens: Tokens, layout: ParallelLayout) -> None:
    """`taps` as for add_light, which must have been called with them."""
    for name, squares, owner in (
        ("query_grad_norm", taps.query_grad, Owner.HEADS),
        ("key_grad_norm", taps.key_grad, Owner.KEY_VALUE_HEADS),
        ("value_hat_grad_norm", taps.value_hat_grad, Owner.KEY_VALUE_HEADS),
    ):
        add_head_norms(sums, name, owner, squares, tokens, scale_power=1)
        add_norm_over_heads(sums, f"{name}_all", squares, tokens, layout, owner)
    add_head_norms(sums, "value_hat_norm", Owner.KEY_VALUE_HEADS, taps.value_hat, tokens, scale_power=0)
    add_drain(sums, "value_hat", taps.value_hat, tokens)
    _add_patterns(sums, taps, tokens)

    branch = (taps.block_input_grad, taps.attention_norm_grad, taps.attention_norm_input_grad)
    _add_branch(sums, "attention", taps.middle_grad, *branch, taps.block_input, tokens)
    branch = (taps.middle_grad, taps.mlp_norm_grad, taps.mlp_norm_input_grad)
    _add_branch(sums, "mlp", taps.block_output_grad, *branch, taps.middle, tokens)
    _add_paths(sums, taps.attention_paths, tokens)

    _add_activations(sums, "hidden", taps.block_output_moments, taps.block_output_order)
    _add_activations(sums, "mlp_out", taps.mlp_output_moments, taps.mlp_output_order)
    layers, batch = taps.block_output_moments.shape[:2]
    sums.add("_sequences", Owner.LAYER, torch.full((layers,), batch, device=taps.value.device))


def _add_patterns(sums: Sums, taps: BlockTaps, tokens: Tokens) -> None:
    """Columns of attention_heads as attention_patterns.head_patterns describes them."""
    heads = taps.attention_heads
    sums.add("attention_sink_value", Owner.HEADS, heads[..., 0].double().sum(dim=1), over="_queries")
    sums.add("sink_query_share", Owner.HEADS, heads[..., 1].double().sum(dim=1), over="_queries")
    sums.maximum("attention_logit_max", Owner.HEADS, heads[..., 2].amax(dim=1))
    gu = heads[..., 3:].double().sum(dim=1)
    sums.add("gu_alpha", Owner.HEADS, gu[..., :GU_KEYS], over="_gu_documents")
    sums.add("gu_sink", Owner.HEADS, gu[..., GU_KEYS:], over="_gu_documents")
    long_enough = (tokens.size >= min(GU_LENGTH, tokens.position.shape[1])).sum()
    sums.add("_gu_documents", Owner.LAYER, long_enough.expand(len(heads)))
    entropy = tokens.bin_sums(taps.attention_entropy.permute(0, 3, 1, 2))
    sums.add("attention_entropy", Owner.HEADS, entropy, over="_tokens")


def _add_branch(
    sums: Sums, name: str, g1: Tensor, g1_plus_g3: Tensor, g2: Tensor, g3: Tensor, entering: Tensor, tokens: Tokens
) -> None:
    """g1, g2, g3 and Bloat, Change, Compress by position and by the norm of the branch's input; squares [L, B, T].

    A ratio is averaged over the tokens where it exists: those whose denominator is not 0 (a gradient is exactly 0 where
    nothing that follows has a target).
    """
    g1, g1_plus_g3, g2, g3 = (squares.double().sqrt() for squares in (g1, g1_plus_g3, g2, g3))
    for figure, norms in (("g1", g1), ("g2", g2), ("g3", g3)):
        sums.add(f"{name}_{figure}_norm", Owner.LAYER, tokens.bin_sums(norms), over="_tokens", scale_power=1)
    input_norm = entering.sqrt()
    sums.add(f"{name}_input_norm", Owner.LAYER, tokens.bin_sums(input_norm), over="_tokens")
    for figure, numerator, denominator in (
        ("bloat", g2, g1),
        ("change", g1_plus_g3, g1),
        ("compress", g3, g2),
    ):
        exists = (denominator > 0).double()
        ratio = torch.where(denominator > 0, numerator / denominator, 0.0)
        for suffix, sum_up in (
            ("", tokens.bin_sums),
            ("_by_input_norm", lambda values: input_norm_sums(values, input_norm)),
        ):
            count = f"{name}_{figure}{suffix}_count"
            sums.add(f"{name}_{figure}{suffix}", Owner.LAYER, sum_up(ratio), over=count)
            sums.add(count, Owner.LAYER, sum_up(exists))


def _add_paths(sums: Sums, paths: Tensor, tokens: Tokens) -> None:
    """g2 split into what came through each projection p; `paths` [L, B, T, 6].

    The share of a path is g2_p . g2 / |g2|^2; the three sum to 1. Its mean over tokens, and the ratio of means of the
    two products.
    """
    paths = paths.double()
    norms, products = paths[..., :3].sqrt(), paths[..., 3:]
    whole = products.sum(dim=-1)
    exists = whole > 0
    sums.add("_attention_g2_exists", Owner.LAYER, tokens.bin_sums(exists))
    sums.add("_attention_g2_square", Owner.LAYER, tokens.bin_sums(whole))
    for index, path in enumerate(PATHS):
        name = f"attention_g2_{path}"
        sums.add(f"{name}_norm", Owner.LAYER, tokens.bin_sums(norms[..., index]), over="_tokens", scale_power=1)
        share = torch.where(exists, products[..., index] / whole, 0.0)
        sums.add(f"{name}_share", Owner.LAYER, tokens.bin_sums(share), over="_attention_g2_exists")
        sums.add(
            f"{name}_share_of_means", Owner.LAYER, tokens.bin_sums(products[..., index]), over="_attention_g2_square"
        )


def _add_activations(sums: Sums, name: str, moments: Tensor, order: Tensor) -> None:
    """moments [L, B, 4] and order [L, B, 3] as model.activation_statistics returns them, maxima over the sequence."""
    sums.add(f"_{name}_moments", Owner.SHARD, moments.sum(dim=1))
    largest, median, massive = order.double().unbind(dim=-1)
    sums.maximum(f"{name}_abs_max", Owner.LAYER, largest.amax(dim=1))
    sums.add(f"{name}_abs_median", Owner.LAYER, median.sum(dim=1), over="_sequences")
    sums.add(f"{name}_top1_over_median", Owner.LAYER, (largest / median).sum(dim=1), over="_sequences")
    sums.add(f"{name}_massive_count", Owner.SHARD, massive.sum(dim=1))
