"""Which heads are sinks: attention to token 0, one cell per layer and head."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis.figures.drawing import Drawing, HeatMap, draw_heat_maps
from megasink.analysis.measured import MeasuredModel

_THRESHOLDS = (0.2, 0.3)  # where --eps does not say
_SHOWS = "The share of attention that each head gives to token 0 (AS), one cell per layer and query head."
_LOOK = (
    "From 0 (dark) to 1 (bright); point at a cell for its value. An untrained model is dark everywhere. 0.3 is the "
    "usual threshold for a sink."
)


def draw(models: list[MeasuredModel]) -> Drawing:
    maps = [
        HeatMap(model.label, model.report["attention_sink"], "query head", "AS", "cividis", 0.0, 1.0)
        for model in models
    ]
    figure = Figure(figsize=(max(4.5, 4.2 * len(models)), 4.4))
    draw_heat_maps(figure, maps, "AS (share of attention to token 0)")
    reading = [_read(model) for model in models]
    return Drawing("heads", "sink_heads", "Attention sink by head", figure, _SHOWS, _LOOK, reading, maps)


def _read(model: MeasuredModel) -> str:
    sink = model.report["attention_sink"]
    shares = " and ".join(
        f"{np.mean(sink > eps):.0%} give it more than {eps:g}"
        for eps in model.report.meta.get("sink_thresholds", _THRESHOLDS)
    )
    layer, head = np.unravel_index(sink.argmax(), sink.shape)
    largest = f"the largest share is {sink.max():.3f} (layer {layer}, head {head})"
    return f"{model.label}: of {sink.size} heads {shares}; {largest}."
