"""One analysed model: its sink report, the untrained null of the same shape, and where both came from."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megasink.stats.report import SinkReport


@dataclass
class Measurement:
    """What one set of weights gave on the analysed tokens."""

    report: SinkReport
    """Over all sequences together, in the live reports' format."""
    per_sequence: dict[str, np.ndarray]
    """Figures by sequence (by document of several tokens, where documents are kept apart) and layer, each [S, L];
    `loss` [S], nats per token, and `tokens` [S]."""
    loss: float
    """Nats per token, over all tokens."""


@dataclass(frozen=True)
class Check:
    """A number that was computed in two ways: how far they are apart."""

    name: str
    error: float | None
    """None where the check was left out."""
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error is None or self.error <= self.limit


@dataclass(frozen=True)
class QuantizedLoss:
    """Mean cross entropy in nats with one way of rounding weights and activations."""

    name: str
    loss: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@dataclass
class MeasuredModel:
    """A model as the figures and the table see it."""

    label: str
    trained: Measurement
    untrained: Measurement | None = None
    """The null: the same shape with weights that were never trained, on the same tokens."""
    null_source: str = ""
    """Where the null's weights came from, in words."""
    source: str = ""
    """The checkpoint folder."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is worth printing: step, parameters, shape."""
    trajectory: list[SinkReport] = field(default_factory=list)
    """Live reports of the run over training, by ascending step."""
    checks: list[Check] = field(default_factory=list)
    quantization: list[QuantizedLoss] = field(default_factory=list)
    """Empty unless the activation-range diagnostic was asked for."""
    value_attached: SinkReport | None = None
    """The full backward pass on the first sequences."""
    value_detached: SinkReport | None = None
    """The counterfactual: the same pass on the same sequences with the value path cut."""

    @property
    def report(self) -> SinkReport:
        return self.trained.report

    @property
    def null(self) -> SinkReport | None:
        return None if self.untrained is None else self.untrained.report

    @property
    def learned_v_scale(self) -> bool:
        return self.report.meta["v_scale"] == "on"


def positions_per_bin(report: SinkReport) -> np.ndarray:
    """How many token positions each bin holds, int64 [P]."""
    return report["position_end"] - report["position_start"]


def bin_centres(report: SinkReport) -> np.ndarray:
    """The geometric middle of each position bin on an axis of t + 1, [P]."""
    return np.sqrt((report["position_start"] + 1.0) * report["position_end"])
