"""Figures 2, 8 and 9: gradients of queries, keys and values by token position."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megasink.analysis import style
from megasink.analysis.figures.drawing import Drawing, legend_below
from megasink.analysis.measured import MeasuredModel, bin_centres
from megasink.stats.report import SinkReport

_LOOK = (
    "All heads together, of the summed loss. A gradient sink shows as a left end far above the rest; the value panel "
    "is where the paper finds it. Broken lines are the untrained null of the same colour."
)
_LOOK_STEPS = (
    "All heads together, mean over layers, of the summed loss; pale to dark: from the first step to the last. A "
    "gradient sink that forms lifts the left end. Broken: untrained."
)
_PANELS = (
    ("query_grad_norm_all", "Queries", "|dL/dq_t|"),
    ("key_grad_norm_all", "Keys", "|dL/dk_t|"),
    ("value_grad_norm_all", "Values", "|dL/dv_t|"),
    ("value_hat_grad_norm_all", "Values after V-scale", "|dL/dv_hat_t|"),
)
_STEPS = 6


def draw(models: list[MeasuredModel]) -> Drawing | None:
    """Figure 2, models beside each other; None without the full statistics."""
    if not _have_all(models):
        return None
    figure = _across_models(models, [("", None)])
    shows = "The gradients of each position's query, key and value vectors, mean over layers, model beside model."
    return Drawing("2", "figure02_qkv_gradients", "Query, key and value gradients", figure, shows, _LOOK)


def draw_by_layer(models: list[MeasuredModel]) -> Drawing | None:
    """Figure 9, models beside each other in the first, the middle and the last layer; None as for figure 2."""
    if not _have_all(models):
        return None
    layers = models[0].report.meta["num_layers"]
    rows = {0: "layer 0", layers // 2: f"layer {layers // 2}", -1: f"layer {layers - 1}"}
    figure = _across_models(models, [(name, layer) for layer, name in rows.items()])
    shows = "The gradients of each position's query, key and value vectors in the first, a middle and the last layer."
    title = "Query, key and value gradients by layer"
    return Drawing("9", "figure09_qkv_gradients_by_layer", title, figure, shows, _LOOK)


def draw_by_step(models: list[MeasuredModel]) -> Drawing | None:
    """Figure 8, steps of training beside each other; None where no run has full statistics of at least two steps."""
    runs = [(index, model, _with_gradients(model.trajectory)) for index, model in enumerate(models)]
    runs = [run for run in runs if len(run[2]) >= 2]
    if not runs:
        return None
    figure = Figure(figsize=(12, 0.6 + 3.5 * len(runs)))
    grid = figure.subplots(len(runs), 3, squeeze=False)
    for row, (index, model, reports) in zip(grid, runs, strict=True):
        shades = colormaps["cividis_r"](np.linspace(0.15, 0.95, len(reports)))
        for axes, (name, title, unit) in zip(row, _PANELS[:3], strict=True):
            for report, shade in zip(reports, shades, strict=True):
                axes.plot(*_curve(report, name), color=shade, label=f"step {report.meta['step']:,}")
            if model.null is not None:
                axes.plot(*_curve(model.null, name), label="untrained", **style.null_line(index))
            _finish(axes, f"{model.label}: {title.lower()}", unit, reports[-1])
        row[-1].legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    shows = "How the gradients of queries, keys and values by token position changed over training."
    title = "Query, key and value gradients over training"
    return Drawing("8", "figure08_qkv_gradients_by_step", title, figure, shows, _LOOK_STEPS)


def _have_all(models: list[MeasuredModel]) -> bool:
    return all("query_grad_norm_all" in model.report.arrays for model in models)


def _with_gradients(reports: list[SinkReport]) -> list[SinkReport]:
    """At most _STEPS reports of trained weights that hold these figures, evenly spaced, the last one among them."""
    reports = [report for report in reports if report.meta["step"] and "query_grad_norm_all" in report.arrays]
    if len(reports) <= _STEPS:
        return reports
    return [reports[round(at)] for at in np.linspace(0, len(reports) - 1, _STEPS)]


def _across_models(models: list[MeasuredModel], rows: list[tuple[str, int | None]]) -> Figure:
    """One row of panels for each (name, layer); layer None: the mean over layers."""
    with_v_scale = any(model.report.meta["v_scale"] != "off" for model in models)
    panels = _PANELS if with_v_scale else _PANELS[:3]
    figure = Figure(figsize=(4 * len(panels), 0.7 + 3.5 * len(rows)))
    for line, (row, layer) in zip(figure.subplots(len(rows), len(panels), squeeze=False), rows, strict=True):
        for axes, (name, title, unit) in zip(line, panels, strict=True):
            for index, model in enumerate(models):
                options = {"color": style.colour(index), "marker": style.marker(index), "label": model.label}
                axes.plot(*_curve(model.report, name, layer), **options)
                if model.null is not None:
                    null = _curve(model.null, name, layer)
                    axes.plot(*null, label=f"{model.label}, untrained", **style.null_line(index))
            _finish(axes, f"{title}, {row}" if row else title, unit, models[0].report)
    legend_below(figure)
    return figure


def _finish(axes: Axes, title: str, unit: str, report: SinkReport) -> None:
    axes.set_title(title)
    axes.set_ylabel(f"{unit} (L2 norm)")
    axes.set_yscale("log")
    style.plain_log_labels(axes)
    style.position_axis(axes, int(report["position_end"][-1]) - 1)


def _curve(report: SinkReport, name: str, layer: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Position and gradient norm of the summed loss; a query at position 0 has no choice, hence no gradient."""
    shown = slice(1, None) if name.startswith("query") else slice(None)
    norms = report[name] * report.meta["tokens"]
    return bin_centres(report)[shown], (norms.mean(axis=0) if layer is None else norms[layer])[shown]
