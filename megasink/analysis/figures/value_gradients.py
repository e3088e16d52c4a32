"""Figure 1: the gradient that reaches the value of each token position."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel, bin_centres, positions_per_bin
from megasink.stats.report import SinkReport

_SHOWS = "How much gradient reaches the value vector of each token position, averaged over layers and in three of them."
_LOOK = (
    "All key-value heads together, before V-scale; the loss is the sum over tokens, so the batch's size does not "
    "matter. A gradient sink is a left end far above the rest. It falls with t even without training (broken lines), "
    "since early positions are seen by more queries: compare with the broken line of the same colour."
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None without gradients."""
    if any("value_grad_norm_all" not in model.report.arrays for model in models):
        return None
    num_layers = models[0].report.meta["num_layers"]
    middle = num_layers // 2
    panels = [("Mean over layers", None), ("Layer 0", 0), (f"Layer {middle}", middle), (f"Layer {num_layers - 1}", -1)]
    figure = Figure(figsize=(12, 6.6))
    for axes, (title, layer) in zip(figure.subplots(2, 2, sharey=True).flat, panels, strict=True):
        for index, model in enumerate(models):
            colour = style.colour(index)
            centres = bin_centres(model.report)
            axes.plot(centres, _curve(model.report, layer), color=colour, marker=style.marker(index), label=model.label)
            if model.null is not None:
                null = _curve(model.null, layer)
                axes.plot(bin_centres(model.null), null, label=f"{model.label}, untrained", **style.null_line(index))
        axes.set_title(title)
        axes.set_yscale("log")
        style.position_axis(axes, int(models[0].report["position_end"][-1]) - 1)
    for axes in figure.axes:
        style.plain_log_labels(axes)
        axes.set_ylabel("|dL/dv_t| (L2 norm)")
    legend_below(figure)
    reading = [_read(model) for model in models]
    title = "Value gradients by token position"
    return Drawing("1", "figure01_value_gradients", title, figure, _SHOWS, _LOOK, reading)


def _curve(report: SinkReport, layer: int | None) -> np.ndarray:
    """Gradient norms of the summed loss by position bin, [P]."""
    norms = report["value_grad_norm_all"] * report.meta["tokens"]
    return norms.mean(axis=0) if layer is None else norms[layer]


def _read(model: MeasuredModel) -> str:
    def first_over_rest(report):
        curve, weights = _curve(report, None), positions_per_bin(report)[1:]
        return curve[0] * weights.sum() / (curve[1:] @ weights)

    text = f"{model.label}: position 0 gets {first_over_rest(model.report):.3g} times the mean of the others"
    if model.null is not None:
        text += f" (untrained {first_over_rest(model.null):.3g})"
    return text + ", layers averaged."
