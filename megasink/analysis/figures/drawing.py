"""What one figure of the report is made of, and the heat maps that two of them share."""

from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


@dataclass
class HeatMap:
    """Values by layer and head, [L, heads], for a picture and for a page that shows each value under the pointer."""

    title: str
    values: np.ndarray
    head_name: str
    value_name: str
    colour_map: str
    low: float
    high: float

    def colours(self) -> list[list[str]]:
        """Hex colours [L, heads]."""
        shaded = colormaps[self.colour_map](Normalize(self.low, self.high)(self.values))
        return [[to_hex(cell) for cell in row] for row in shaded]

    def gradient(self) -> str:
        """The colour scale from low to high, as CSS colour stops."""
        return ", ".join(to_hex(shade) for shade in colormaps[self.colour_map](np.linspace(0, 1, 9)))


@dataclass
class Drawing:
    """A drawn figure with the words that go beside it."""

    number: str
    """The paper's figure number, or a name of our own where the paper has none."""
    slug: str
    """File name without suffix."""
    title: str
    figure: Figure | None
    """None once it was drawn into a picture."""
    shows: str
    """What it shows, in one sentence: true for any model."""
    look: str
    """How to read it, and what the null means."""
    reading: list[str] = field(default_factory=list)
    """What these models show, in numbers: one sentence each."""
    heat_maps: list[HeatMap] = field(default_factory=list)
    """Where the figure consists of heat maps: the same, for the page."""


def legend_below(figure: Figure, most: int = 4, panel: int = 0) -> None:
    """One legend for all panels, from the labels of one of them, under the figure."""
    handles, labels = figure.axes[panel].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), most))


def draw_heat_maps(figure: Figure, maps: list[HeatMap], colour_bar_label: str) -> None:
    """One panel per map, layer 0 at the bottom, one colour bar for all."""
    panels = list(figure.subplots(1, len(maps), squeeze=False)[0])
    for axes, heat_map in zip(panels, maps, strict=True):
        scale = {"vmin": heat_map.low, "vmax": heat_map.high}
        image = axes.imshow(heat_map.values, cmap=heat_map.colour_map, aspect="auto", origin="lower", **scale)
        axes.set_title(heat_map.title)
        axes.set_xlabel(heat_map.head_name)
        axes.set_ylabel("layer")
        axes.grid(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    figure.colorbar(image, ax=panels, label=colour_bar_label)
