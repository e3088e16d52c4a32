"""One analysed model: its sink report, the untrained null of the same shape, and where both came from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class SinkReport:
    """One sink report: `meta` and `arrays` as the report file holds them (docs/run_folder.md), float64.

    Unknown arrays are allowed: later versions of the file add some.
    """

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def num_layers(self) -> int:
        return int(self.meta["num_layers"])

    @property
    def positions_per_bin(self) -> np.ndarray:
        """How many token positions each bin holds, [P]."""
        return self["position_end"] - self["position_start"]


@dataclass
class MeasuredModel:
    """A model as the figures and the table see it."""

    label: str
    report: SinkReport
    null: SinkReport | None = None
    """The same statistics of the same shape with untrained weights."""
    null_source: str = ""
    """Where the null's weights came from, in words."""
    valid_loss: float | None = None
    """Nats per token on the analysed tokens."""
    source: str = ""
    """The checkpoint folder."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is worth printing: step, parameters, precision, seed."""
    trajectory: list[SinkReport] = field(default_factory=list)
    """Live reports of the run over training, by ascending step; the null first if there is one."""

    @property
    def step(self) -> int:
        return int(self.report.meta["step"])

    @property
    def has_v_scale(self) -> bool:
        return "theta" in self.report.arrays
