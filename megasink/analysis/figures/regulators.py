"""Figures 3, 10 and 11: what a branch does to the gradient, against the norm of its input."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel
from megasink.stats.report import SinkReport

_SHOWS = (
    "What the {branch} branch does to a token's gradient on the way back, by the norm of the branch's input{where}: "
    "grow (Bloat), shrink (Compress), and what is left (Change)."
)
_LOOK = (
    "Bloat |g2|/|g1|: how much the gradient grows through the branch. Compress |g3|/|g2|: how much RMSNorm's backward"
    " pass shrinks it again, about sqrt(width) over the norm. Change |g1+g3|/|g1|: what is left of both on the "
    "residual stream. A large input is compressed strongly: that is how a massive activation can carry a gradient "
    "sink without harm. Broken lines: untrained."
)
_FIGURES = (("bloat", "Bloat |g2| / |g1|"), ("compress", "Compress |g3| / |g2|"), ("change", "Change |g1+g3| / |g1|"))
_NAMES = {"attention": "attention", "mlp": "MLP"}


def draw_attention(models: list[MeasuredModel]) -> Drawing | None:
    return _draw(models, "attention", "3", "figure03_attention_regulators")


def draw_mlp(models: list[MeasuredModel]) -> Drawing | None:
    return _draw(models, "mlp", "11", "figure11_mlp_regulators")


def draw_by_depth(models: list[MeasuredModel]) -> Drawing | None:
    """The attention branch in the first, middle and last third of the layers."""
    return _draw(models, "attention", "10", "figure10_attention_regulators_by_depth", parts=3)


def _draw(models: list[MeasuredModel], branch: str, number: str, slug: str, parts: int = 1) -> Drawing | None:
    """One row of panels for each of `parts` equal parts of the layers; None without the full statistics."""
    if any(f"{branch}_bloat_by_input_norm" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(12, 0.7 + 3.5 * parts))
    names = ("",) if parts == 1 else (", first third", ", middle third", ", last third")
    for part, row in enumerate(figure.subplots(parts, 3, squeeze=False)):
        for axes, (name, title) in zip(row, _FIGURES, strict=True):
            _panel(axes, models, f"{branch}_{name}_by_input_norm", (part, parts))
            axes.set_title(title + names[part])
        row[0].set_ylabel("ratio of norms, mean over tokens")
    legend_below(figure)
    title = f"Gradients through the {_NAMES[branch]} branch against its input's norm" + (parts > 1) * ", by depth"
    where = ", by depth" if parts > 1 else ", all layers together"
    return Drawing(number, slug, title, figure, _SHOWS.format(branch=_NAMES[branch], where=where), _LOOK)


def _panel(axes: Axes, models: list[MeasuredModel], name: str, part: tuple[int, int]) -> None:
    shown = []
    for index, model in enumerate(models):
        x, y = _curve(model.report, name, part)
        axes.plot(x, y, color=style.colour(index), marker=style.marker(index), label=model.label)
        shown.append(y)
        if model.null is not None:
            x, y = _curve(model.null, name, part)
            axes.plot(x, y, label=f"{model.label}, untrained", **style.null_line(index))
            shown.append(y)
    axes.set_xscale("log")
    style.plain_labels(axes.xaxis)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("norm of the branch's input")
    style.log_if_wide(axes, np.concatenate(shown))


def _curve(report: SinkReport, name: str, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each norm bin that holds tokens, and the mean ratio there, over part i of n of the layers."""
    layers = np.array_split(np.arange(report.meta["num_layers"]), part[1])[part[0]]
    edges, counts = report["input_norm_edge"], report[f"{name}_count"][layers]
    total = np.where(counts > 0, report[name][layers] * counts, 0.0).sum(axis=0)
    there = counts.sum(axis=0) > 0
    return np.sqrt(edges[:-1] * edges[1:])[there], total[there] / counts.sum(axis=0)[there]
