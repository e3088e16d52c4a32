"""Through which projection the sink's gradient comes: the mechanism, measured."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel

_SHOWS = (
    "Through which projection the gradient of token 0 comes: its value, its key or its query, in shares that add up "
    "to 1."
)
_LOOK = (
    "It is the gradient at the attention norm's output (g2); a share is the part's projection on the whole, and can "
    "be negative. The paper's claim is about the value path: where its share is near 1, damping it (V-scale) can "
    "remove the gradient sink. Broken lines: untrained."
)
_PATHS = ("value", "key", "query")


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None without the full statistics."""
    if any("attention_g2_value_share" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(max(6.0, 5 * len(models)), 4.2))
    for axes, model in zip(figure.subplots(1, len(models), sharey=True, squeeze=False)[0], models, strict=True):
        layers = np.arange(model.report.meta["num_layers"])
        for index, path in enumerate(_PATHS):
            name = f"attention_g2_{path}_share"
            axes.plot(
                layers, model.report[name][:, 0], color=style.colour(index), marker=style.marker(index), label=path
            )
            if model.null is not None:
                axes.plot(layers, model.null[name][:, 0], label=f"{path}, untrained", **style.null_line(index))
        axes.axhline(0, color="#555555", linewidth=0.8)
        axes.set_title(model.label)
        style.layer_axis(axes, len(layers))
    figure.axes[0].set_ylabel("share of the gradient at token 0")
    legend_below(figure, most=3)
    reading = [_read(model) for model in models]
    title = "Paths of the sink's gradient"
    return Drawing("paths", "gradient_paths", title, figure, _SHOWS, _LOOK, reading)


def _read(model: MeasuredModel) -> str:
    share = model.report["attention_g2_value_share"][:, 0]
    text = f"{model.label}: the value path carries {share.mean():.2f} of it on average over layers"
    if model.null is not None:
        text += f" (untrained {model.null['attention_g2_value_share'][:, 0].mean():.2f})"
    return text + f", from {share.min():.2f} to {share.max():.2f}."
