"""A sink report as it should be, put together from the naive reference statistics."""

import itertools

import numpy as np
import torch
from torch import Tensor

from megasink.config import ModelConfig
from megasink.stats.measures import input_norm_edges, position_bins
from tests.reference.llama import ReferenceConfig
from tests.reference.sink_stats import gu_sink, sink_statistics


def reference_config(config: ModelConfig) -> ReferenceConfig:
    return ReferenceConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.kv_channels,
        rotary_base=config.rotary_base,
        norm_epsilon=config.norm_epsilon,
        v_scale=config.v_scale,
        sigma=config.init_method_std,
    )


def expected_report(
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokens: Tensor,
    labels: Tensor,
    document_starts: list[list[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Every array of a full report, except medians' neighbours known to a histogram's bin only (see the test)."""
    length = tokens.shape[1]
    gu_length = min(64, length)
    stats = sink_statistics(weights, reference_config(config), tokens, labels, document_starts, gu_length=gu_length)
    starts, ends = position_bins(length)
    position = stats["position"]

    def by_bin(values: Tensor) -> Tensor:
        """[..., S, T] -> [..., P], the mean over the tokens where the figure exists."""
        columns = []
        for start, end in zip(starts, ends, strict=True):
            chosen = values[..., (position >= start) & (position < end)]
            columns.append(chosen.nanmean(dim=-1))
        return torch.stack(columns, dim=-1)

    several = stats["document_length"] > 1
    out = {"position_start": torch.tensor(starts), "position_end": torch.tensor(ends)}
    counts = [((position >= start) & (position < end)).sum() for start, end in zip(starts, ends, strict=True)]
    out["position_count"] = torch.stack(counts)
    for name in ("query", "key", "value", "value_hat"):
        out[f"{name}_grad_norm"] = by_bin(stats[f"{name}_grad_norm"])
        out[f"{name}_grad_norm_all"] = by_bin(stats[f"{name}_grad_norm_all"])
    later = position > 0
    for name in ("value", "value_hat"):
        out[f"{name}_norm"] = by_bin(stats[f"{name}_norm"])
        out[f"{name}_norm_others"] = stats[f"{name}_norm"][..., later].mean(dim=-1)
        out[f"{name}_drain"] = stats[f"{name}_drain"].nanmean(dim=-1)
        out[f"{name}_drain_of_means"] = stats[f"{name}_drain_of_means"]
    for name in ("hidden", "mlp_out"):
        norm = stats[f"{name}_norm"]
        out[f"{name}_norm"] = by_bin(norm)
        out[f"{name}_t0_over_early"] = stats[f"{name}_t0_over_early"].nanmean(dim=-1)
        early = norm[..., later & (position < 16)].mean(dim=-1)
        out[f"{name}_t0_over_early_of_means"] = norm[..., position == 0].mean(dim=-1) / early
        out[f"{name}_abs_max"] = stats[f"{name}_abs_max"].amax(dim=-1)
        out[f"{name}_abs_median"] = stats[f"{name}_abs_median"].mean(dim=-1)
        out[f"{name}_top1_over_median"] = stats[f"{name}_top1_over_median"].mean(dim=-1)
        out[f"{name}_massive_count"] = stats[f"{name}_massive_count"].sum(dim=-1)
        out[f"{name}_kurtosis"] = stats[f"{name}_kurtosis"]
        out[f"{name}_kurtosis_uncentred"] = stats[f"{name}_kurtosis_uncentred"]
    for name in ("ratio", "ratio_early", "ratio_strongest", "position"):
        out[f"gradient_sink_{name}"] = stats[f"gradient_sink_{name}"][:, several]

    for name in ("attention_sink", "attention_sink_value", "sink_query_share"):
        out[name] = stats[name]
    for name in ("attention_lse_max", "attention_logit_max"):
        out[name] = stats[name]
    out["attention_entropy"] = by_bin(stats["attention_entropy"])
    out["gu_alpha"] = stats["gu_alpha"].nanmean(dim=2)
    heads = [[gu_sink(alpha[None, None]) for alpha in layer] for layer in stats["gu_alpha"]]
    out["gu_sink"] = torch.stack([torch.stack(layer) for layer in heads])

    g2 = stats["attention_g2_norm"]
    for path in ("query", "key", "value"):
        name = f"attention_g2_{path}"
        out[f"{name}_norm"] = by_bin(stats[f"{name}_norm"])
        out[f"{name}_share"] = by_bin(stats[f"{name}_share"])
        product = (stats[f"{name}_share"] * g2.square()).nan_to_num()
        out[f"{name}_share_of_means"] = by_bin(product) / by_bin(g2.square())
    edges = input_norm_edges()
    out["input_norm_edge"] = edges
    for branch in ("attention", "mlp"):
        entering = stats[f"{branch}_input_norm"]
        out[f"{branch}_input_norm"] = by_bin(entering)
        for figure in ("g1", "g2", "g3"):
            out[f"{branch}_{figure}_norm"] = by_bin(stats[f"{branch}_{figure}_norm"])
        for figure in ("bloat", "change", "compress"):
            name, ratio = f"{branch}_{figure}", stats[f"{branch}_{figure}"]
            ratio = torch.where(ratio.isinf(), torch.nan, ratio)  # 0 below: nothing after the token has a target
            out[name] = by_bin(ratio)
            out[f"{name}_count"] = by_bin((~ratio.isnan()).double()) * out["position_count"]
            means, sizes = [], []
            for low, high in itertools.pairwise(edges):
                inside = (entering >= low) & (entering < high) & ~ratio.isnan()
                sizes.append(inside.sum(dim=(1, 2)))
                means.append((ratio.nan_to_num() * inside).sum(dim=(1, 2)) / sizes[-1])
            out[f"{name}_by_input_norm"] = torch.stack(means, dim=-1)
            out[f"{name}_by_input_norm_count"] = torch.stack(sizes, dim=-1)
    for name in ("theta", "v_scale_c"):
        if name in stats:
            out[name] = stats[name]
    return {name: value.double().numpy() for name, value in out.items()}
