"""How every figure looks: colours that colour-blind readers can tell apart, sizes, axes over layers and positions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which is too faint on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_NULL_DASHES = ((4, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5))

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # matplotlib's search for a free place costs a tenth of a figure's time
    "axes.formatter.useoffset": False,  # an offset or a power of ten would stand where the title does
    "axes.formatter.limits": (-9, 12),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.dpi": 160,
    "svg.hashsalt": "megasink",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with our settings and without a display, leaving the caller's matplotlib as it was."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def null_line(index: int) -> dict[str, Any]:
    """Line options of a model's untrained null: its colour, broken, a pattern of its own where nulls coincide."""
    dashes = _NULL_DASHES[index % len(_NULL_DASHES)]
    return {"color": colour(index), "linestyle": (0, dashes), "linewidth": 1.5, "alpha": 0.85}


def layer_axis(axes: Axes, num_layers: int) -> None:
    axes.set_xlabel("layer")
    axes.set_xlim(-0.4, num_layers - 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))


def position_axis(axes: Axes, last_position: int) -> None:
    """A logarithmic axis over t + 1, so that position 0 has its place; the labels say t."""
    ticks = [2**power for power in range(0, 32) if 2**power <= last_position + 1]
    if len(ticks) > 8:
        ticks = ticks[:: -(-len(ticks) // 8)]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value) - 1}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("token position t (log scale of t + 1)")


def log_if_wide(axes: Axes, values: np.ndarray, ratio: float = 30.0) -> None:
    """A log axis where positive values span more than `ratio`, else a linear axis from zero."""
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > ratio * values.min():
        axes.set_yscale("log")
        plain_log_labels(axes)
    else:
        axes.set_ylim(0, 1.06 * values.max() if values.size else None)


def plain_log_labels(axes: Axes) -> None:
    """0.1, 1, 10, 100 instead of powers of ten, on the y axis; labels between decades where few decades are shown."""
    plain_labels(axes.yaxis)
    low, high = axes.get_ylim()
    if high < 100 * low:
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)  # with room to widen
        axes.yaxis.set_minor_locator(FixedLocator([k * 10.0**e for e in decades for k in (2, 5)]))
        axes.yaxis.set_minor_formatter(axes.yaxis.get_major_formatter())
    else:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def plain_labels(axis: Axis) -> None:
    """Numbers as people write them on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
