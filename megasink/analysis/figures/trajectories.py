"""Every figure's headline over training."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel, positions_per_bin
from megasink.analysis.summary import per_layer
from megasink.stats.report import SinkReport

_SHOWS = "What each figure of this report was at earlier steps of the run: one panel per figure."
_LOOK = (
    "From the live statistics that the run wrote and from its checkpoints that were analysed here. Thick lines: mean "
    "over layers (R_GS: of the layers' medians); thin lines: the largest layer. Step 0 is the untrained null."
)
_COLUMNS = 3


@dataclass(frozen=True)
class _Panel:
    """One number per layer of a report, [L] or [L, heads]."""

    title: str
    unit: str
    of: Callable[[SinkReport], np.ndarray]


def _column(name: str) -> Callable[[SinkReport], np.ndarray]:
    return lambda report: per_layer(report)[name]


def _at_token_0(name: str) -> Callable[[SinkReport], np.ndarray]:
    return lambda report: report[name][:, 0]


def _first_over_rest(name: str) -> Callable[[SinkReport], np.ndarray]:
    def ratio(report: SinkReport) -> np.ndarray:
        weights = positions_per_bin(report)[1:]
        return report[name][:, 0] * weights.sum() / (report[name][:, 1:] @ weights)

    return ratio


def _drain(report: SinkReport) -> np.ndarray:
    layers = per_layer(report)
    return layers["value_norm_t0"] / layers["value_norm_others"]


_PANELS = (
    _Panel("Figure 7: attention to token 0", "AS", _column("attention_sink")),
    _Panel("Figure 7: block output at token 0", "|x_out_0|", _column("hidden_norm_t0")),
    _Panel("Figure 7: MLP output at token 0", "|MLP out_0|", _column("mlp_out_norm_t0")),
    _Panel("Figure 6: gradient sink", "R_GS(0)", _column("gradient_sink_ratio_median")),
    _Panel("Figure 6: against 1 to 15", "R_GS(0), early", _column("gradient_sink_ratio_early_median")),
    _Panel("Figure 1: value gradients", "|dL/dv_0| / others", _first_over_rest("value_grad_norm_all")),
    _Panel("Figures 2, 8, 9: key gradients", "|dL/dk_0| / others", _first_over_rest("key_grad_norm_all")),
    _Panel("Figures 3, 10: attention Bloat", "Bloat at token 0", _at_token_0("attention_bloat")),
    _Panel("Figures 3, 10: attention Compress", "Compress at token 0", _at_token_0("attention_compress")),
    _Panel("Figure 11: MLP Bloat", "Bloat at token 0", _at_token_0("mlp_bloat")),
    _Panel("Figure 11: MLP Compress", "Compress at token 0", _at_token_0("mlp_compress")),
    _Panel("Figure 12: value drain", "|v_0| / others", _drain),
    _Panel("Figure 13: theta", "theta, mean over heads", lambda report: report["theta"].mean(axis=1)),
    _Panel("Value path", "share of g2 at token 0", _at_token_0("attention_g2_value_share")),
    _Panel("Massive activations", "largest / median |a|", lambda report: report["hidden_top1_over_median"]),
    _Panel("Sink heads", "share of heads with AS > 0.3", lambda report: (report["attention_sink"] > 0.3).mean(axis=1)),
)


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """None where no run has reports of at least two steps."""
    runs = [(index, model) for index, model in enumerate(models) if len(model.trajectory) >= 2]
    panels = [(panel, [(*run, _over_steps(run[1].trajectory, panel)) for run in runs]) for panel in _PANELS]
    panels = [
        (panel, [curve for curve in curves if len(curve[2][0]) >= 2])
        for panel, curves in panels
        if any(len(curve[2][0]) >= 2 for curve in curves)
    ]
    if not panels:
        return None
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(12, 0.7 + 2.7 * rows))
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes, (panel, curves) in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, curves)
    for axes in list(figure.axes)[len(panels) :]:
        axes.remove()
    legend_below(figure)
    return Drawing("steps", "trajectories", "Over training", figure, _SHOWS, _LOOK)


def _draw_panel(axes: Axes, panel: _Panel, curves: list) -> None:
    for index, model, (steps, values) in curves:
        colour = style.colour(index)
        axes.plot(steps, values.mean(axis=1), color=colour, marker=style.marker(index), label=model.label)
        axes.plot(steps, values.max(axis=1), color=colour, linewidth=0.9, label=f"{model.label}, largest layer")
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("training step")
    shown = np.concatenate([values.ravel() for _, _, (_, values) in curves])
    if (shown >= 0).all():
        style.log_if_wide(axes, shown)


def _over_steps(reports: list[SinkReport], panel: _Panel) -> tuple[list[int], np.ndarray]:
    """Steps whose report holds the figure, and its values [steps, L]."""
    steps, values = [], []
    for report in reports:
        try:
            values.append(panel.of(report))
        except KeyError:  # a light report, or a model without V-scale
            continue
        steps.append(report.meta["step"])
    return steps, np.array(values)
