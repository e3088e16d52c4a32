"""Figures drawn into files' contents, in several processes where there are cores for them."""

import io
import os
import signal
from base64 import b64encode
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver, get_context
from signal import SIG_IGN, SIGINT

from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from megasink.analysis.figures import Drawing, draw_figures
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.style import figure_style

_MOST_WORKERS = 8
_NARROW = 9.0  # inches


@dataclass(frozen=True)
class Picture:
    """A figure of the report."""

    drawing: Drawing
    """Its words and heat maps; its Figure is left out."""
    png: bytes
    svg: bytes
    narrow: bool

    @property
    def base64(self) -> str:
        """The PNG, for a page."""
        return b64encode(self.png).decode()


def useful_workers(figures: int) -> int:
    """How many processes to draw in; a worker has to import what it draws with, which two cores would not win back."""
    return max(1, min(len(os.sched_getaffinity(0)) // 2, figures, _MOST_WORKERS))


def prepare_workers() -> None:
    """Start the process that workers are forked from; it imports while this one goes on."""
    # forked from a process of its own, since this one's threads and CUDA do not survive a fork
    forkserver.set_forkserver_preload(["megasink.analysis.analyze"])
    forkserver.ensure_running()


def draw_pictures(models: list[MeasuredModel], names: list[str], workers: int = 1) -> list[Picture]:
    """The figures named that apply to `models`, in this order, drawn in `workers` processes."""
    if workers == 1:
        return _draw(models, names)
    shares = [names[first::workers] for first in range(min(workers, len(names)))]  # `models` goes to each worker once
    try:
        # Ctrl-C is for the parent, which ends its workers
        with ProcessPoolExecutor(workers, get_context("forkserver"), signal.signal, (SIGINT, SIG_IGN)) as pool:
            drawn = [picture for share in pool.map(partial(_draw, models), shares) for picture in share]
    except BrokenProcessPool:  # killed, say for memory: drawing here takes longer, but nothing measured is lost
        return _draw(models, names)
    return sorted(drawn, key=lambda picture: names.index(picture.drawing.number))


def _draw(models: list[MeasuredModel], names: list[str]) -> list[Picture]:
    return [render(drawing) for name in names for drawing in draw_figures(models, [name])]


def render(drawing: Drawing) -> Picture:
    """As PNG and SVG, laid out once and drawn once for each; savefig would lay out once and draw twice for each."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure = drawing.figure
    with figure_style():
        figure.set_dpi(rcParams["savefig.dpi"])
        FigureCanvasAgg(figure).print_png(png)
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})  # so it depends on its numbers only
    narrow = figure.get_figwidth() < _NARROW
    return Picture(replace(drawing, figure=None), png.getvalue(), svg.getvalue(), narrow)
