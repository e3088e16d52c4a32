"""Figures 6 and 14: gradient sinks per layer, each model beside its own untrained null."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.summary import spread

_SHOWS = (
    "R_GS(0) by layer: the norm of the gradient that reaches token 0 at the attention norm's output, over its mean at"
    " the other tokens (left) or at positions 1 to 15 (right)."
)
_LOOK = (
    "Lines are medians over sequences, bands the middle half. Broken lines are the null: the same shape with "
    "untrained weights. Under a causal mask position 0 is seen by every query, so even a model without any sink has a"
    " ratio well above 1; only what rises above the broken line of the same colour was learned."
)
_SHOWS_LEARNED = (
    "What training added to each layer's gradient sink: the median R_GS(0) over that of the untrained model on the "
    "same tokens."
)
_LOOK_LEARNED = (
    "1 (dotted) is no more than the causal mask alone gives; bands are the trained model's quartiles over the null's "
    "median. The same numbers as the figure of the gradient sinks, without having to compare two lines."
)
_PANELS = (
    ("gradient_sink_ratio", "Against all other positions"),
    ("gradient_sink_ratio_early", "Against positions 1 to 15"),
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """Figure 6; None without gradients."""
    if any("gradient_sink_ratio" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(10.5, 4.2))
    for axes, (name, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        _panel(axes, models, name, title)
    figure.axes[0].set_ylabel("R_GS(0), ratio of norms")
    legend_below(figure)
    reading = [_read(model) for model in models]
    return Drawing("6", "figure06_gradient_sinks", "Gradient sinks per layer", figure, _SHOWS, _LOOK, reading)


def draw_learned(models: list[MeasuredModel]) -> Drawing | None:
    """Figure 14; None without gradients or nulls."""
    if any(model.null is None or "gradient_sink_ratio" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(10.5, 4.2))
    reading = []
    for axes, (name, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        shown = []
        for index, model in enumerate(models):
            null = spread(model.null[name]).median
            ratio = spread(model.report[name] / null[:, None])
            layers = np.arange(len(null))
            axes.fill_between(layers, ratio.low, ratio.high, color=style.colour(index), alpha=0.18, linewidth=0)
            options = {"color": style.colour(index), "marker": style.marker(index)}
            axes.plot(layers, ratio.median, label=model.label, **options)
            shown += [ratio.low, ratio.high]
            above, most = int((ratio.median > 1).sum()), ratio.median.argmax()
            reading.append(
                f"{model.label}, {title[0].lower()}{title[1:]}: above the null in {above} of {len(null)} layers, "
                f"{ratio.median[most]:.3g} times at most (layer {most})."
            )
        axes.axhline(1, color="#555555", linestyle=":", linewidth=1.2)
        axes.set_title(title)
        style.layer_axis(axes, max(model.report.meta["num_layers"] for model in models))
        style.log_if_wide(axes, np.concatenate(shown), ratio=10.0)
    figure.axes[0].set_ylabel("R_GS(0) over the untrained model's")
    legend_below(figure)
    title = "Gradient sinks over their null"
    return Drawing("14", "figure14_learned_gradient_sinks", title, figure, _SHOWS_LEARNED, _LOOK_LEARNED, reading)


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
