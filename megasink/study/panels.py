"""The page's curves: thick lines are means over seeds, thin ones single seeds, broken ones untrained nulls."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from megasink.analysis import style
from megasink.study.comparison import FIGURES, TRAINING_LOSS, Figure, StudySeries, mean_over_seeds
from megasink.study.run_folder_reader import Series


@dataclass(frozen=True)
class Panel:
    """One picture, as base64 of a PNG."""

    title: str
    unit: str
    png: str


def draw_panels(study: StudySeries) -> list[Panel]:
    """Training loss, its difference from the baseline, and every figure of which something is recorded."""
    with style.figure_style():
        drawn = [_panel(study, TRAINING_LOSS), _difference_panel(study), *(_panel(study, figure) for figure in FIGURES)]
    return [panel for panel in drawn if panel is not None]


def _panel(study: StudySeries, figure: Figure) -> Panel | None:
    drawing, axes = _empty()
    shown: list[float] = []
    for index, arm in enumerate(study.study.arms):
        by_seed = study.by_seed(arm, figure)
        shown += _draw(axes, by_seed, index)
        null = study.null(arm, figure) if figure.null else None
        if null is not None:
            axes.axhline(null, **style.null_line(index))
            shown.append(null)
    if not shown:
        return None
    if figure in (TRAINING_LOSS, FIGURES[0]):
        _cut_beginning(axes, study, figure)
    elif figure.unit.startswith("share"):  # on a log axis the first sink head would take most of it
        axes.set_ylim(bottom=0)
    else:
        style.log_if_wide(axes, np.array(shown))
    if "over its null" in figure.title:
        axes.axhline(1.0, color="gray", linewidth=1)
    return Panel(figure.title, figure.unit, _png(drawing))


def _difference_panel(study: StudySeries) -> Panel | None:
    """The loss that arms of one seed have on the same data: what the batch itself does cancels."""
    drawing, axes = _empty()
    shown: list[float] = []
    for index, arm in enumerate(study.study.arms):
        if arm != study.study.baseline:
            shown += _draw(axes, study.differences(arm, TRAINING_LOSS), index)
    if not shown:
        return None
    axes.axhline(0.0, color=style.colour(study.study.arms.index(study.study.baseline)), linewidth=1)
    unit = "nats per token, same data" if study.study.same_data else "nats per token"
    return Panel(f"Training loss minus {study.study.baseline}", unit, _png(drawing))


def _draw(axes: Axes, by_seed: dict[int, Series], index: int) -> list[float]:
    """Returns the values drawn."""
    thick = mean_over_seeds(by_seed) if len(by_seed) > 1 else next(iter(by_seed.values()), {})
    if len(by_seed) > 1:
        for series in by_seed.values():
            axes.plot(list(series), list(series.values()), color=style.colour(index), linewidth=0.7, alpha=0.55)
    marker = style.marker(index) if len(thick) <= 40 else None
    axes.plot(list(thick), list(thick.values()), color=style.colour(index), marker=marker)
    return [value for series in by_seed.values() for value in series.values()]


def _cut_beginning(axes: Axes, study: StudySeries, figure: Figure) -> None:
    """The first twentieth falls from ln V and would flatten the rest: the axis ends where it ends."""
    tails = []
    for arm in study.study.arms:
        for series in study.by_seed(arm, figure).values():
            values = list(series.values())
            tails += values[len(values) // 20 :]
    low, high = min(tails), max(tails)
    if np.isfinite([low, high]).all() and high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _empty() -> tuple[Drawing, Axes]:
    drawing = Drawing(figsize=(5.2, 3.1))
    axes = drawing.subplots()
    axes.set_xlabel("step")
    return drawing, axes


def _png(drawing: Drawing) -> str:
    content = io.BytesIO()
    drawing.savefig(content, format="png", dpi=150)
    return base64.b64encode(content.getvalue()).decode()
