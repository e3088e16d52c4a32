"""Sink reports for wandb: scalars by layer, heat maps layer x head, curves over token position."""

from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from megasink.stats.report import SinkReport

_BY_LAYER = (
    "hidden_t0_over_early",
    "mlp_out_t0_over_early",
    "hidden_abs_max",
    "hidden_kurtosis",
    "hidden_top1_over_median",
)
_FIRST_POSITION = ("hidden_norm", "mlp_out_norm", "attention_bloat", "attention_compress", "attention_g2_value_share")
_HEADS = ("attention_sink", "attention_logit_max", "sink_query_share", "attention_sink_value", "value_drain", "theta")
_CURVES = ("query_grad_norm_all", "key_grad_norm_all", "value_grad_norm_all", "attention_g2_norm", "hidden_norm")


def layer_scalars(report: SinkReport) -> dict[str, float]:
    """`sink_stats_by_layer/NAME/layer_00`, ...: grouped by name in wandb."""
    by_layer = {
        "attention_sink": report["attention_sink"].mean(axis=1),
        "value_drain": report["value_drain"].mean(axis=1),
    }
    for name in ("gradient_sink_ratio", "gradient_sink_ratio_early"):
        by_layer[f"{name}_median"] = np.median(report[name], axis=1)
    by_layer |= {name: report[name] for name in _BY_LAYER if name in report.arrays}
    by_layer |= {f"{name}_t0": report[name][:, 0] for name in _FIRST_POSITION if name in report.arrays}
    return {
        f"sink_stats_by_layer/{name}/layer_{layer:02d}": float(value)
        for name, values in by_layer.items()
        for layer, value in enumerate(values)
    }


def draw_charts(report: SinkReport, null: SinkReport | None) -> dict[str, Image.Image]:
    """The images of a full report by wandb name. Takes seconds: not for the training loop's own thread."""
    with matplotlib.rc_context({"font.size": 8}):
        return {
            "sink_stats_charts/heat_maps": _image(_heat_maps(report)),
            "sink_stats_charts/positions": _image(_position_curves(report, null)),
        }


def _heat_maps(report: SinkReport) -> Figure:
    """Layer x head of what each head has one figure of."""
    names = [name for name in _HEADS if name in report.arrays]
    figure = Figure(figsize=(12.0, 6.4), layout="constrained")
    figure.suptitle(f"Step {report.meta['step']}")
    for axes, name in zip(figure.subplots(2, 3).flat, names, strict=False):
        figure.colorbar(axes.imshow(report[name], aspect="auto", cmap="cividis"), ax=axes)
        axes.set(title=name, xlabel="head", ylabel="layer")
    return figure


def _position_curves(report: SinkReport, null: SinkReport | None) -> Figure:
    """Mean over layers by token position, beside the null's."""
    figure = Figure(figsize=(12.0, 6.4), layout="constrained")
    centre = (report["position_start"] + report["position_end"] + 1) / 2
    for axes, name in zip(figure.subplots(2, 3).flat, _CURVES, strict=False):
        values = report[name].mean(axis=0)
        axes.plot(centre, values, marker=".", label=f"step {report.meta['step']}")
        if null is not None and name in null.arrays:
            axes.plot(centre, null[name].mean(axis=0), linestyle="--", color="gray", label="untrained")
        scale = "log" if (values > 0).any() else "linear"  # of a step whose gradients are NaN nothing is
        axes.set(title=name, xlabel="position, from 1", xscale="log", yscale=scale)
        axes.legend()
    return figure


def _image(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)
