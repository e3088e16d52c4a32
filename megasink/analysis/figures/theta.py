"""Figure 13: what V-scale learned, a heat map of theta."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel

_LOOK = (
    "V-scale's learned theta, one cell per layer and key-value head. It starts at 0 (white). Positive (red) means a "
    "larger C, so small values are damped more strongly; negative (blue) means that the head asked for less damping. "
    "An untrained model is white everywhere."
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None where no model learned theta."""
    models = [model for model in models if model.learned_v_scale]
    if not models:
        return None
    figure = Figure(figsize=(max(4.5, 4.2 * len(models)), 4.4))
    limit = max(max(abs(model.report["theta"]).max() for model in models), 1e-6)
    panels = np.atleast_1d(figure.subplots(1, len(models)))
    for axes, model in zip(panels, models, strict=True):
        image = axes.imshow(
            model.report["theta"], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower"
        )
        axes.set_title(model.label)
        axes.set_xlabel("key-value head")
        axes.set_ylabel("layer")
        axes.grid(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    figure.colorbar(image, ax=list(panels), label="theta (C is multiplied by e^theta)")
    reading = [_read(model) for model in models]
    return Drawing("13", "figure13_theta", "Learned strength of V-scale", figure, _LOOK, reading)


def _read(model: MeasuredModel) -> str:
    theta = model.report["theta"]
    return (
        f"{model.label}: theta from {theta.min():+.3g} to {theta.max():+.3g}, mean {theta.mean():+.3g}; C is "
        f"multiplied by {np.exp(theta.min()):.3g} to {np.exp(theta.max()):.3g}."
    )
