"""Figures 2, 8 and 9: gradients of queries, keys and values by token position."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel, bin_centres
from megasink.stats.report import SinkReport

_LOOK = (
    "The gradient of each position's query, key and value vectors (all heads together, mean over layers, of the summed "
    "loss). A gradient sink shows as a left end far above the rest; the value panel is where the paper finds it. "
    "Broken lines are the untrained null of the same colour."
)
_PANELS = (
    ("query_grad_norm_all", "Queries", "|dL/dq_t|"),
    ("key_grad_norm_all", "Keys", "|dL/dk_t|"),
    ("value_grad_norm_all", "Values", "|dL/dv_t|"),
    ("value_hat_grad_norm_all", "Values after V-scale", "|dL/dv_hat_t|"),
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None without the full statistics."""
    if any("query_grad_norm_all" not in model.report.arrays for model in models):
        return None
    with_v_scale = any(model.report.meta["v_scale"] != "off" for model in models)
    panels = _PANELS if with_v_scale else _PANELS[:3]
    figure = Figure(figsize=(4 * len(panels), 4.2))
    for axes, (name, title, unit) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for index, model in enumerate(models):
            x, y = _curve(model.report, name)
            axes.plot(x, y, color=style.colour(index), marker=style.marker(index), label=model.label)
            if model.null is not None:
                x, y = _curve(model.null, name)
                axes.plot(x, y, label=f"{model.label}, untrained", **style.null_line(index))
        axes.set_title(title)
        axes.set_ylabel(f"{unit} (L2 norm)")
        axes.set_yscale("log")
        style.plain_log_labels(axes)
        style.position_axis(axes, int(models[0].report["position_end"][-1]) - 1)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return Drawing("2", "figure02_qkv_gradients", "Query, key and value gradients", figure, _LOOK)


def _curve(report: SinkReport, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Position and gradient norm of the summed loss; a query at position 0 has no choice, hence no gradient."""
    shown = slice(1, None) if name.startswith("query") else slice(None)
    norms = report[name] * report.meta["tokens"]
    return bin_centres(report)[shown], norms.mean(axis=0)[shown]
