"""The mechanism tested: the same backward pass with the value path cut."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, HeatMap, draw_heat_maps, legend_below
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.summary import spread

_SHOWS = (
    "The gradient sink of the same forward pass once with the whole backward pass and once with the value path cut "
    "out of it (values detached in every layer)."
)
_LOOK = (
    "Left: |g2| at token 0 without the value path, over that with it; 0 would mean that all of it comes that way, 1 "
    "that nothing does. Right: the median R_GS(0) of both passes. Layers are cut all at once, so the gradient that "
    "arrives from above differs too; the share of each layer's own value path is in the figure of the paths."
)
_SHOWS_HEADS = (
    "How much of the gradient at token 0 comes through each head's value in its own layer, one cell per layer and "
    "key-value head."
)
_LOOK_HEADS = (
    "The projection of the head's part of g2 on the whole; the heads of a layer add up to the value path's share, "
    "keys and queries carry the rest. Point at a cell for its value. Red: a part of the sink's gradient; blue: "
    "against it."
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None where no model had both backward passes."""
    if any(model.value_detached is None for model in models):
        return None
    figure = Figure(figsize=(10.5, 4.2))
    left, right = figure.subplots(1, 2)
    shown = []
    for index, model in enumerate(models):
        layers = np.arange(model.report.meta["num_layers"])
        colour, marker = style.colour(index), style.marker(index)
        left.plot(layers, _left_over(model), color=colour, marker=marker, label=model.label)
        for report, label, options in (
            (model.value_attached, model.label, {"marker": marker}),
            (model.value_detached, f"{model.label}, value path cut", {"linestyle": ":", "marker": marker}),
        ):
            median = spread(report["gradient_sink_ratio"]).median
            right.plot(layers, median, color=colour, label=label, **options)
            shown.append(median)
    left.axhline(1, color="#555555", linestyle=":", linewidth=1.2)
    left.set_title("Gradient left at token 0")
    left.set_ylabel("|g2_0| without the value path / with it")
    left.set_ylim(0, max(1.1, 1.05 * max(_left_over(model).max() for model in models)))
    right.set_title("Gradient sink of both passes")
    right.set_ylabel("median R_GS(0)")
    for axes in (left, right):
        style.layer_axis(axes, max(model.report.meta["num_layers"] for model in models))
    style.log_if_wide(right, np.concatenate(shown))
    legend_below(figure, panel=1)
    title = "Without the value path"
    reading = [_read(model) for model in models]
    return Drawing("counterfactual", "counterfactual", title, figure, _SHOWS, _LOOK, reading)


def draw_heads(models: list[MeasuredModel]) -> Drawing | None:
    """None without the full statistics."""
    name = "value_path_share_by_head"
    if any(name not in model.report.arrays for model in models):
        return None
    limit = max(abs(model.report[name]).max() for model in models)
    maps = [HeatMap(m.label, m.report[name], "key-value head", "share", "RdBu_r", -limit, limit) for m in models]
    figure = Figure(figsize=(max(4.5, 4.2 * len(models)), 4.4))
    draw_heat_maps(figure, maps, "share of the gradient at token 0")
    reading = [_read_heads(model) for model in models]
    title = "The sink's gradient by value head"
    return Drawing("values", "value_path_by_head", title, figure, _SHOWS_HEADS, _LOOK_HEADS, reading, maps)


def _left_over(model: MeasuredModel) -> np.ndarray:
    """|g2| at token 0 without the value path over that with it, means over sequences, [L]."""
    cut, whole = (report["attention_g2_norm"][:, 0] for report in (model.value_detached, model.value_attached))
    return np.divide(cut, whole, out=np.zeros_like(cut), where=whole > 0)


def _read(model: MeasuredModel) -> str:
    left = _left_over(model)
    whole, cut = (np.median(report["gradient_sink_ratio"]) for report in (model.value_attached, model.value_detached))
    return (
        f"{model.label}: without the value path {left.mean():.0%} of the gradient at token 0 is left on average over "
        f"layers ({left.min():.0%} to {left.max():.0%}); median R_GS(0) {whole:.3g} becomes {cut:.3g} (on "
        f"{model.value_attached.meta['sequences']:,} sequences)."
    )


def _read_heads(model: MeasuredModel) -> str:
    share = model.report["value_path_share_by_head"]
    layer, head = np.unravel_index(share.argmax(), share.shape)
    return (
        f"{model.label}: all heads of a layer together {share.sum(axis=1).mean():.2f} on average; the largest single "
        f"share is {share.max():.2f} (layer {layer}, key-value head {head})."
    )
