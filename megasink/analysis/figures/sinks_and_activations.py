"""Figure 7: attention sink and massive activations per layer."""

import numpy as np
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.summary import attention_sink_null, per_layer

_SHOWS = "By layer, how much attention token 0 gets (AS) and how large it is after each block and at the MLP's output."
_LOOK = (
    "Left: mean over heads; 1 would be all attention. Middle and right: massive activations are values far above the "
    "untrained model's. Broken lines are the null (same shape, untrained weights); the grey dotted line is AS of "
    "perfectly uniform attention, {uniform:.3f} at this length."
)

_PANELS = (
    ("attention_sink", "Attention to token 0", "AS (share of attention)"),
    ("hidden_norm_t0", "Block output at token 0", "|x_out| at t = 0 (L2 norm)"),
    ("mlp_out_norm_t0", "MLP output at token 0", "|MLP out| at t = 0 (L2 norm)"),
)


def draw(models: list[MeasuredModel]) -> Drawing:
    figure = Figure(figsize=(12, 4.2))
    uniform = attention_sink_null(int(models[0].report.meta["seq_length"]))
    for axes, (name, title, unit) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        shown = []
        for index, model in enumerate(models):
            for report, options in _curves(model, index):
                values = per_layer(report)[name]
                axes.plot(np.arange(report.meta["num_layers"]), values, **options)
                shown.append(values)
        axes.set_title(title)
        axes.set_ylabel(unit)
        style.layer_axis(axes, max(model.report.meta["num_layers"] for model in models))
        if name == "attention_sink":
            axes.axhline(uniform, color="#555555", linestyle=":", linewidth=1.2, label="uniform attention")
            axes.set_ylim(0, max(0.05, 1.08 * np.concatenate(shown).max()))
            handles, labels = axes.get_legend_handles_labels()
        else:
            style.log_if_wide(axes, np.concatenate(shown))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    reading = [_read(model) for model in models]
    look = _LOOK.format(uniform=uniform)
    return Drawing(
        "7", "figure07_sinks_and_activations", "Attention sinks and massive activations", figure, _SHOWS, look, reading
    )


def _curves(model: MeasuredModel, index: int):
    yield model.report, {"color": style.colour(index), "marker": style.marker(index), "label": model.label}
    if model.null is not None:
        yield model.null, {"label": f"{model.label}, untrained", **style.null_line(index)}


def _read(model: MeasuredModel) -> str:
    layers = per_layer(model.report)
    sink, hidden = layers["attention_sink"], layers["hidden_norm_t0"]
    text = f"{model.label}: AS {sink.mean():.3f} on average, {sink.max():.3f} in layer {sink.argmax()}"
    text += f"; |x_out| at token 0 reaches {hidden.max():.4g} in layer {hidden.argmax()}"
    if model.null is not None:
        text += f" (untrained {per_layer(model.null)['hidden_norm_t0'].max():.4g} at most)"
    return text + "."
