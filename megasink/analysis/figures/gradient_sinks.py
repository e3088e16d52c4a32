"""Figures 6 and 14: gradient sinks per layer, each model beside its own untrained null."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.summary import spread

_LOOK = (
    "R_GS(0) is the norm of the gradient that reaches token 0 at the attention norm's output, divided by its mean "
    "over the other tokens (left) or over positions 1 to 15 (right). Lines are medians over sequences, bands the "
    "middle half. Broken lines are the null: the same shape with untrained weights. Under a causal mask position 0 is"
    " seen by every query, so even a model without any sink has a ratio well above 1; only what rises above the "
    "broken line of the same colour was learned."
)


def draw(models: list[MeasuredModel]) -> Drawing:
    figure = Figure(figsize=(10.5, 4.2))
    left, right = figure.subplots(1, 2)
    _panel(left, models, "gradient_sink_ratio", "Against all other positions")
    _panel(right, models, "gradient_sink_ratio_early", "Against positions 1 to 15")
    left.set_ylabel("R_GS(0), ratio of norms")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    reading = [_read(model) for model in models]
    return Drawing("6", "figure06_gradient_sinks", "Gradient sinks per layer", figure, _LOOK, reading)


def _panel(axes: Axes, models: list[MeasuredModel], name: str, title: str) -> None:
    shown = []
    for index, model in enumerate(models):
        ratio = spread(model.report[name])
        layers = np.arange(model.report.meta["num_layers"])
        colour = style.colour(index)
        axes.fill_between(layers, ratio.low, ratio.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(layers, ratio.median, color=colour, marker=style.marker(index), label=model.label)
        shown += [ratio.low, ratio.high]
        if model.null is not None:
            null = spread(model.null[name]).median
            axes.plot(layers, null, label=f"{model.label}, untrained", **style.null_line(index))
            shown.append(null)
    axes.set_title(title)
    style.layer_axis(axes, max(model.report.meta["num_layers"] for model in models))
    style.log_if_wide(axes, np.concatenate(shown))


def _read(model: MeasuredModel) -> str:
    def words(report, name):
        ratio = spread(report[name], axis=None)
        return f"{ratio.median:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"

    text = f"{model.label}: median over layers and sequences {words(model.report, 'gradient_sink_ratio')}"
    if model.null is not None:
        text += f" (untrained {words(model.null, 'gradient_sink_ratio')})"
    text += f", against early positions {words(model.report, 'gradient_sink_ratio_early')}"
    if model.null is not None:
        text += f" (untrained {words(model.null, 'gradient_sink_ratio_early')})"
    return text + "."
