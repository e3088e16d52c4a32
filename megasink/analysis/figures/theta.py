"""Figure 13: what V-scale learned, a heat map of theta."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis.figures.drawing import Drawing, HeatMap, draw_heat_maps
from megasink.analysis.measured import MeasuredModel

_SHOWS = "V-scale's learned theta, one cell per layer and key-value head."
_LOOK = (
    "Point at a cell for its value. Theta starts at 0 (white). Positive (red) means a larger C, so small values are "
    "damped more strongly; negative (blue) means that the head asked for less damping. An untrained model is white "
    "everywhere."
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None where no model learned theta."""
    models = [model for model in models if model.learned_v_scale]
    if not models:
        return None
    limit = max(max(abs(model.report["theta"]).max() for model in models), 1e-6)
    maps = [
        HeatMap(model.label, model.report["theta"], "key-value head", "theta", "RdBu_r", -limit, limit)
        for model in models
    ]
    figure = Figure(figsize=(max(4.5, 4.2 * len(models)), 4.4))
    draw_heat_maps(figure, maps, "theta (C is multiplied by e^theta)")
    reading = [_read(model) for model in models]
    return Drawing("13", "figure13_theta", "Learned strength of V-scale", figure, _SHOWS, _LOOK, reading, maps)


def _read(model: MeasuredModel) -> str:
    theta = model.report["theta"]
    return (
        f"{model.label}: theta from {theta.min():+.3g} to {theta.max():+.3g}, mean {theta.mean():+.3g}; C is "
        f"multiplied by {np.exp(theta.min()):.3g} to {np.exp(theta.max()):.3g}."
    )
