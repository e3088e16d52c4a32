"""Figure 12: how large the value states are, by position and over training."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel, bin_centres
from megasink.analysis.summary import per_layer
from megasink.stats.report import SinkReport

_CURVES = 6
_SHOWS = "The size of value vectors by token position, for the analysed weights and earlier steps of the run."
_LOOK = (
    "Before V-scale, mean over layers and key-value heads. Models with sinks drain the value of token 0: attention "
    "that is parked there then adds little. A left end below the rest is that drain. Untrained values (broken line) "
    "are flat. Pale to dark: checkpoints of the run, where its live statistics are there, from the first to the "
    "analysed one."
)


def draw(models: list[MeasuredModel]) -> Drawing:
    figure = Figure(figsize=(max(6.0, 5.2 * len(models)), 4.2))
    for index, axes in enumerate(figure.subplots(1, len(models), sharey=True, squeeze=False)[0]):
        model = models[index]
        curves = _spread([report for report in model.trajectory if report.meta["step"]])
        shades = colormaps["cividis_r"](np.linspace(0.15, 0.95, max(len(curves), 1)))
        for report, shade in zip(curves, shades, strict=False):
            axes.plot(bin_centres(report), _curve(report), color=shade, label=f"step {report.meta['step']:,}")
        report = model.report
        axes.plot(bin_centres(report), _curve(report), color=style.colour(index), marker="o", label="analysed here")
        if model.null is not None:
            axes.plot(bin_centres(model.null), _curve(model.null), label="untrained", **style.null_line(index))
        axes.set_title(model.label)
        style.position_axis(axes, int(report["position_end"][-1]) - 1)
        axes.legend(fontsize=8.5)
    highest = max(line.get_ydata().max() for axes in figure.axes for line in axes.get_lines())
    figure.axes[0].set_ylim(0, 1.06 * highest)  # shared by all panels
    figure.axes[0].set_ylabel("|v_t| (L2 norm)")
    reading = [_read(model) for model in models]
    return Drawing("12", "figure12_value_norms", "Value states by token position", figure, _SHOWS, _LOOK, reading)


def _curve(report: SinkReport) -> np.ndarray:
    return report["value_norm"].mean(axis=(0, 1))


def _spread(reports: list[SinkReport]) -> list[SinkReport]:
    """At most _CURVES of the reports, evenly spaced, the last one among them."""
    if len(reports) <= _CURVES:
        return reports
    return [reports[round(at)] for at in np.linspace(0, len(reports) - 1, _CURVES)]


def _read(model: MeasuredModel) -> str:
    layers = per_layer(model.report)
    drain = layers["value_norm_t0"] / layers["value_norm_others"]
    return (
        f"{model.label}: |v| at token 0 is {drain.mean():.3g} times that of the other tokens (mean over layers), at "
        f"least {drain.min():.3g} in layer {drain.argmin()}."
    )
