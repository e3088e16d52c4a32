"""The figures of one sink report that fit one line, each ratio beside its null."""

import numpy as np

from megasink.stats.report import SinkReport

SINK_HEAD = 0.3
"""A head gives token 0 more than this: a sink head."""


def scalars(report: SinkReport) -> dict[str, float]:
    """Means over layers (and heads), maxima where a peak tells more; medians over layers and documents."""
    hidden_first = report["hidden_norm"][:, 0]
    figures = {
        "attention_sink_mean": report["attention_sink"].mean(),
        "attention_sink_max_head": report["attention_sink"].max(),
        "attention_sink_head_share": (report["attention_sink"] > SINK_HEAD).mean(),
        "attention_lse_max": report["attention_lse_max"].max(),
        "gradient_sink_ratio_median": np.median(report["gradient_sink_ratio"]),
        "gradient_sink_ratio_early_median": np.median(report["gradient_sink_ratio_early"]),
        "gradient_sink_ratio_strongest_median": np.median(report["gradient_sink_ratio_strongest"]),
        "hidden_norm_t0_mean": hidden_first.mean(),
        "hidden_norm_t0_max": hidden_first.max(),
        "hidden_t0_over_early_mean": report["hidden_t0_over_early"].mean(),
        "hidden_t0_over_early_max": report["hidden_t0_over_early"].max(),
        "mlp_out_norm_t0_mean": report["mlp_out_norm"][:, 0].mean(),
        "value_norm_t0_mean": report["value_norm"][:, :, 0].mean(),
        "value_drain_mean": report["value_drain"].mean(),
        "value_grad_norm_t0_mean": report["value_grad_norm"][:, :, 0].mean(),
    }
    if report.meta["level"] == "full":
        figures |= _full(report)
    return {name: float(value) for name, value in figures.items()}


def _full(report: SinkReport) -> dict[str, float]:
    tokens = report["position_count"]
    figures = {
        "gu_sink": report["gu_sink"][..., 0].mean(),
        "sink_query_share": report["sink_query_share"].mean(),
        "attention_entropy_mean": np.average(report["attention_entropy"], axis=-1, weights=tokens).mean(),
        "attention_logit_max": report["attention_logit_max"].max(),
        "attention_sink_value_mean": report["attention_sink_value"].mean(),
        "value_hat_grad_norm_t0_mean": report["value_hat_grad_norm"][:, :, 0].mean(),
        "query_grad_norm_t0_mean": report["query_grad_norm"][:, :, 0].mean(),
        "key_grad_norm_t0_mean": report["key_grad_norm"][:, :, 0].mean(),
    }
    for branch in ("attention", "mlp"):
        for figure in ("bloat", "change", "compress"):
            figures[f"{branch}_{figure}_t0_mean"] = report[f"{branch}_{figure}"][:, 0].mean()
    for path in ("query", "key", "value"):
        figures[f"attention_g2_{path}_share_t0_mean"] = report[f"attention_g2_{path}_share"][:, 0].mean()
    for name in ("hidden", "mlp_out"):
        figures[f"{name}_abs_max"] = report[f"{name}_abs_max"].max()
        figures[f"{name}_top1_over_median_max"] = report[f"{name}_top1_over_median"].max()
        figures[f"{name}_massive_count"] = report[f"{name}_massive_count"].sum()
        figures[f"{name}_kurtosis_max"] = report[f"{name}_kurtosis"].max()
    return figures


def with_null(figures: dict[str, float], null: dict[str, float]) -> dict[str, float]:
    """Each figure, followed by what untrained weights show as `NAME_null` where that is known."""
    beside = {}
    for name, value in figures.items():
        beside[name] = value
        if name in null:
            beside[f"{name}_null"] = null[name]
    return beside
