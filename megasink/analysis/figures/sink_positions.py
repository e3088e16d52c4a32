"""Sinks wherever they are: attention by key position."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel, bin_centres

_SHOWS = "How much attention each key position gets from the queries behind it, and where the strongest key lies."
_LOOK = (
    "Left: mean over layers, heads and sequences. Right: the layer where one position gets most. Uniform attention "
    "falls slowly from left to right; a sink is a point far above its neighbours. The sentences below say which "
    "position gets most attention in each sequence and layer (among the first half of its tokens, mean over heads). "
    "Broken: untrained."
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None where attention was not looked at."""
    if any("attention_received" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(10.5, 4.2))
    left, right = figure.subplots(1, 2, sharey=True)
    for index, model in enumerate(models):
        options = {"color": style.colour(index), "marker": style.marker(index), "label": model.label}
        strongest = model.report["attention_received"][:, :-1].max(axis=1).argmax()
        for axes, rows in ((left, slice(None)), (right, slice(strongest, strongest + 1))):
            axes.plot(*_curve(model.report, rows), **options)
            if model.null is not None:
                null = _curve(model.null, rows)
                axes.plot(*null, label=f"{model.label}, untrained", **style.null_line(index))
    left.set_title("Mean over layers")
    right.set_title("Strongest layer of each model")
    left.set_ylabel("attention to the key, mean over later queries")
    for axes in (left, right):
        style.position_axis(axes, int(models[0].report["position_end"][-1]) - 1)
        axes.set_yscale("log")
        style.plain_log_labels(axes)
    legend_below(figure)
    reading = [sentence for model in models for sentence in _read(model)]
    return Drawing("positions", "sink_positions", "Sinks by position", figure, _SHOWS, _LOOK, reading)


def _curve(report, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """All bins but the last, whose keys few queries see."""
    return bin_centres(report)[:-1], report["attention_received"][rows, :-1].mean(axis=0)


def _read(model: MeasuredModel) -> list[str]:
    found = model.trained.per_sequence
    if "position_auto" not in found:
        return []
    positions = found["position_auto"].astype(int)
    values, counts = np.unique(positions, return_counts=True)
    top = np.argsort(-counts)[:3]
    places = ", ".join(f"{values[at]} in {counts[at] / positions.size:.0%}" for at in top)
    attention = np.nanmean(found["attention_to_auto"])
    return [f"{model.label}: most attention goes to position {places} of the sequences and layers ({attention:.3f})."]
