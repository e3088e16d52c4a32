"""Massive activations: single elements of the residual stream against the bulk."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel

_LOOK = (
    "Single elements of the block's output: the largest over all sequences, the typical (median) one, and how heavy "
    "the tails are (kurtosis; 3 for a normal distribution). Sun et al. call an element massive when it is above 100 "
    "and 1,000 times the median of its sequence. Broken lines: untrained."
)
_PANELS = (
    ("hidden_abs_max", "Largest element", "max |a|"),
    ("hidden_abs_median", "Median element", "median |a|, mean over sequences"),
    ("hidden_kurtosis", "Kurtosis", "kurtosis of the elements"),
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None without the full statistics."""
    if any("hidden_abs_max" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(12, 4.2))
    for axes, (name, title, unit) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        shown = []
        for index, model in enumerate(models):
            layers = np.arange(model.report.meta["num_layers"])
            options = {"color": style.colour(index), "marker": style.marker(index)}
            axes.plot(layers, model.report[name], label=model.label, **options)
            shown.append(model.report[name])
            if model.null is not None:
                axes.plot(layers, model.null[name], label=f"{model.label}, untrained", **style.null_line(index))
                shown.append(model.null[name])
        axes.set_title(title)
        axes.set_ylabel(unit)
        style.layer_axis(axes, max(model.report.meta["num_layers"] for model in models))
        style.log_if_wide(axes, np.concatenate(shown))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    reading = [_read(model) for model in models]
    return Drawing("massive", "massive_activations", "Massive activations", figure, _LOOK, reading)


def _read(model: MeasuredModel) -> str:
    report = model.report
    per_sequence = report["hidden_massive_count"] / report.meta["sequences"]
    layers = int((per_sequence > 0).sum())
    if layers == 0:
        return f"{model.label}: no element is massive in any layer."
    return (
        f"{model.label}: massive elements in {layers} of {len(per_sequence)} layers, up to {per_sequence.max():.3g} a "
        f"sequence; the largest is {report['hidden_abs_max'].max():,.0f} in layer {report['hidden_abs_max'].argmax()}."
    )
