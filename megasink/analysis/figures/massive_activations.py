"""Massive activations: single elements of the residual stream against the bulk."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel
from megasink.stats.report import SinkReport

_SHOWS = (
    "The three largest elements of each block's output against its typical (median) one: Sun et al.'s massive "
    "activations."
)
_LOOK = (
    "Left: largest, second and third |a| and the exact median, by sequence, then their mean over sequences; an "
    "element is massive above 100 and above 1,000 times the median (dotted). Right: how heavy the tails are "
    "(kurtosis; 3 for a normal distribution). Broken lines: untrained (largest and median only)."
)
_RANKS = (("top1", "largest", "-"), ("top2", "second", "--"), ("top3", "third", ":"), ("median", "median", "-."))


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None without exact order statistics."""
    if any("hidden_by_sequence_top1" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(5.2 * (len(models) + 1), 4.6))
    *panels, last = figure.subplots(1, len(models) + 1, squeeze=False)[0]
    for index, (axes, model) in enumerate(zip(panels, models, strict=True)):
        _ranks(axes, model, index)
        axes.sharey(panels[0])
    panels[0].set_ylabel("|a|, mean over sequences")
    _kurtosis(last, models)
    reading = [_read(model) for model in models]
    return Drawing("massive", "massive_activations", "Massive activations", figure, _SHOWS, _LOOK, reading)


def _ranks(axes: Axes, model: MeasuredModel, index: int) -> None:
    layers = np.arange(model.report.meta["num_layers"])
    for rank, (name, label, line) in enumerate(_RANKS):
        values = model.report[f"hidden_by_sequence_{name}"].mean(axis=1)
        colour = "#555555" if name == "median" else style.colour(index)
        axes.plot(layers, values, color=colour, linestyle=line, alpha=1 - 0.2 * min(rank, 2), label=label)
        if model.null is not None and name in ("top1", "median"):
            null = model.null[f"hidden_by_sequence_{name}"].mean(axis=1)
            axes.plot(layers, null, label=f"{label}, untrained", **style.null_line(index if name == "top1" else 6))
    massive = np.maximum(100, 1000 * model.report["hidden_by_sequence_median"].mean(axis=1))
    axes.plot(layers, massive, color="#B00020", linestyle=(0, (1, 2)), linewidth=1.2, label="massive above")
    axes.set_title(model.label)
    axes.set_yscale("log")
    style.plain_log_labels(axes)
    style.layer_axis(axes, len(layers))
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _kurtosis(axes: Axes, models: list[MeasuredModel]) -> None:
    shown = []
    for index, model in enumerate(models):
        layers = np.arange(model.report.meta["num_layers"])
        options = {"color": style.colour(index), "marker": style.marker(index)}
        axes.plot(layers, model.report["hidden_kurtosis"], label=model.label, **options)
        shown.append(model.report["hidden_kurtosis"])
        if model.null is not None:
            axes.plot(
                layers, model.null["hidden_kurtosis"], label=f"{model.label}, untrained", **style.null_line(index)
            )
            shown.append(model.null["hidden_kurtosis"])
    axes.set_title("Kurtosis")
    axes.set_ylabel("kurtosis of the elements")
    style.layer_axis(axes, max(model.report.meta["num_layers"] for model in models))
    style.log_if_wide(axes, np.concatenate(shown))
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _read(model: MeasuredModel) -> str:
    report = model.report
    per_sequence = report["hidden_massive_count"] / report.meta["sequences"]
    layers = int((per_sequence > 0).sum())
    if layers == 0:
        return f"{model.label}: no element is massive in any layer."
    return (
        f"{model.label}: massive elements in {layers} of {len(per_sequence)} layers, up to {per_sequence.max():.3g} a "
        f"sequence; the largest is {report['hidden_abs_max'].max():,.0f} in layer {report['hidden_abs_max'].argmax()}, "
        f"{_place(report)}."
    )


def _place(report: SinkReport) -> str:
    """Where the largest element of that layer mostly is."""
    layer = report["hidden_abs_max"].argmax()
    words = []
    for name, what in (("top1_position", "token"), ("top1_channel", "channel")):
        values, counts = np.unique(report[f"hidden_by_sequence_{name}"][layer], return_counts=True)
        words.append(f"{what} {values[counts.argmax()]:.0f} in {counts.max() / counts.sum():.0%}")
    return f"at {words[0]} and {words[1]} of the sequences"
