"""Sinks over training: the run's live reports as curves over steps."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.summary import per_layer
from megasink.stats.report import SinkReport

_LOOK = (
    "The same figures over training, from the live statistics that the run wrote; thick lines are means over layers "
    "(for R_GS the mean of the layers' medians), thin lines the largest layer. The leftmost point, step 0, is the "
    "untrained null."
)

_PANELS = (
    ("attention_sink", "Attention to token 0", "AS (share of attention)"),
    ("hidden_norm_t0", "Block output at token 0", "|x_out| at t = 0 (L2 norm)"),
    ("gradient_sink_ratio_median", "Gradient sink", "R_GS(0), ratio of norms"),
    ("gradient_sink_ratio_early_median", "Gradient sink, early", "R_GS(0) against 1 to 15"),
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None where no run has reports of at least two steps."""
    models = [model for model in models if len(model.trajectory) >= 2]
    if not models:
        return None
    figure = Figure(figsize=(12, 6.6))
    for axes, (name, title, unit) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        shown = []
        for index, model in enumerate(models):
            steps = [report.meta["step"] for report in model.trajectory]
            values = _over_steps(model.trajectory, name)
            colour = style.colour(index)
            axes.plot(steps, values.mean(1), color=colour, marker=style.marker(index), label=model.label)
            axes.plot(steps, values.max(1), color=colour, linewidth=1, label=f"{model.label}, largest layer")
            shown.append(values.ravel())
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("training step")
        if name == "attention_sink":
            axes.set_ylim(0, max(0.05, 1.08 * np.concatenate(shown).max()))
        else:
            style.log_if_wide(axes, np.concatenate(shown))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return Drawing("steps", "trajectories", "Sinks over training", figure, _LOOK)


def _over_steps(reports: list[SinkReport], name: str) -> np.ndarray:
    """[steps, L]."""
    return np.stack([per_layer(report)[name] for report in reports])
