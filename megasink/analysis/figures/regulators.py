"""Figures 3, 10 and 11: what a branch does to the gradient, against the norm of its input."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel
from megasink.stats.report import SinkReport

_LOOK = (
    "For each token, by the norm of the {branch} branch's input (binned, all layers): Bloat |g2|/|g1|, how much the "
    "gradient grows on its way back through the branch; Compress |g3|/|g2|, how much RMSNorm's backward pass shrinks "
    "it again, about sqrt(width) over the norm; Change |g1+g3|/|g1|, what is left of both on the residual stream. A "
    "large input is compressed strongly: that is how a massive activation can carry a gradient sink without harm. "
    "Broken lines: untrained."
)
_FIGURES = (("bloat", "Bloat |g2| / |g1|"), ("compress", "Compress |g3| / |g2|"), ("change", "Change |g1+g3| / |g1|"))


def draw_attention(models: list[MeasuredModel]) -> Drawing | None:
    return _draw(models, "attention", "3")


def draw_mlp(models: list[MeasuredModel]) -> Drawing | None:
    return _draw(models, "mlp", "11")


def _draw(models: list[MeasuredModel], branch: str, number: str) -> Drawing | None:
    """None without the full statistics."""
    if any(f"{branch}_bloat_by_input_norm" not in model.report.arrays for model in models):
        return None
    figure = Figure(figsize=(12, 4.2))
    for axes, (name, title) in zip(figure.subplots(1, 3), _FIGURES, strict=True):
        shown = []
        for index, model in enumerate(models):
            x, y = _curve(model.report, f"{branch}_{name}_by_input_norm")
            axes.plot(x, y, color=style.colour(index), marker=style.marker(index), label=model.label)
            shown.append(y)
            if model.null is not None:
                x, y = _curve(model.null, f"{branch}_{name}_by_input_norm")
                axes.plot(x, y, label=f"{model.label}, untrained", **style.null_line(index))
                shown.append(y)
        axes.set_title(title)
        axes.set_xscale("log")
        style.plain_labels(axes.xaxis)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("norm of the branch's input")
        style.log_if_wide(axes, np.concatenate(shown))
    figure.axes[0].set_ylabel("ratio of norms, mean over tokens")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    name = {"attention": "attention", "mlp": "MLP"}[branch]
    title = f"Gradients through the {name} branch against its input's norm"
    return Drawing(number, f"figure{number:0>2}_{branch}_regulators", title, figure, _LOOK.format(branch=name))


def _curve(report: SinkReport, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each norm bin that holds tokens, and the mean ratio there, over all layers."""
    edges, counts = report["input_norm_edge"], report[f"{name}_count"]
    total = np.where(counts > 0, report[name] * counts, 0.0).sum(axis=0)
    there = counts.sum(axis=0) > 0
    return np.sqrt(edges[:-1] * edges[1:])[there], total[there] / counts.sum(axis=0)[there]
