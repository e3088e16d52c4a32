"""Intervals over sequences: how far a figure would move had other sequences of the same text been drawn."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from megasink.analysis.measured import MeasuredModel, Measurement

RESAMPLES = 2000
SEED = 0
_AT_ONCE = 100


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % percentile bootstrap interval; NaN bounds where there is one sequence only."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class FigureIntervals:
    """One figure of one model: trained, untrained, and what training changed, paired by sequence."""

    key: str
    """Its name in by_sequence.npz; `name` is for people, and its words may change."""
    name: str
    trained: Interval
    untrained: Interval | None
    learned: Interval | None


@dataclass(frozen=True)
class ComparisonRow:
    """One figure of two models on the same sequences; `difference` is second minus first, paired by sequence."""

    key: str
    name: str
    first_label: str
    second_label: str
    first: Interval
    second: Interval
    difference: Interval


@dataclass(frozen=True)
class _Figure:
    """How a figure by sequence and layer [S, L] becomes one number: a mean of layers and sequences, or a median."""

    name: str
    key: str
    over: Literal["tokens", "sequences", "median"] = "sequences"


_FIGURES = (
    _Figure("valid loss", "loss", "tokens"),
    _Figure("AS, mean over layers", "attention_sink", "tokens"),
    _Figure("|x_out| at t = 0, mean over layers", "hidden_t0"),
    _Figure("t0 / early, mean over layers", "hidden_t0_over_early"),
    _Figure("|MLP out| at t = 0, mean over layers", "mlp_t0"),
    _Figure("R_GS(0), median over layers and sequences", "gradient_sink_ratio", "median"),
    _Figure("R_GS(0) against 1 to 15, median", "gradient_sink_ratio_early", "median"),
)


def intervals(model: MeasuredModel) -> list[FigureIntervals]:
    """Every figure of the table with its interval, beside the null's."""
    rows = []
    for figure in _FIGURES:
        if figure.key not in model.trained.per_sequence:
            continue
        value, drawn = _estimates(figure, model.trained)
        untrained = learned = None
        if model.untrained is not None:
            null_value, null_drawn = _estimates(figure, model.untrained)
            untrained = _interval(null_value, null_drawn)
            learned = _interval(value - null_value, drawn - null_drawn)
        rows.append(FigureIntervals(figure.key, figure.name, _interval(value, drawn), untrained, learned))
    return rows


def compare(first: MeasuredModel, second: MeasuredModel) -> list[ComparisonRow]:
    """Every figure of the table for two models measured on the same sequences."""
    rows = []
    labels = first.label, second.label
    for figure in _FIGURES:
        if any(figure.key not in model.trained.per_sequence for model in (first, second)):
            continue
        counts = [len(model.trained.per_sequence[figure.key]) for model in (first, second)]
        if counts[0] != counts[1]:
            continue  # one keeps documents apart and the other does not: there are no pairs
        value_a, drawn_a = _estimates(figure, first.trained)
        value_b, drawn_b = _estimates(figure, second.trained)
        parts = _interval(value_a, drawn_a), _interval(value_b, drawn_b)
        difference = _interval(value_b - value_a, drawn_b - drawn_a)
        rows.append(ComparisonRow(figure.key, figure.name, *labels, *parts, difference))
    return rows


def _estimates(figure: _Figure, measurement: Measurement) -> tuple[float, np.ndarray]:
    """The figure over all sequences, and [RESAMPLES] over each resample of them: the same ones at every call."""
    values = measurement.per_sequence[figure.key]
    values = values.reshape(len(values), -1)
    chosen = _resamples(len(values))
    if len(values) == 1:  # nothing varies, and nothing is known of how it would
        only = np.median(values) if figure.over == "median" else values.mean()
        return float(only), np.full(RESAMPLES, np.nan)
    if figure.over == "median":
        parts = [np.median(values[part].reshape(len(part), -1), axis=1) for part in np.split(chosen, _AT_ONCE)]
        return float(np.median(values)), np.concatenate(parts)
    weights = np.ones(len(values))
    if figure.over == "tokens":
        weights = measurement.per_sequence["tokens"] - (figure.key != "loss")  # AS is a mean over queries i > 0
    sums = weights * values.mean(axis=1)
    return float(sums.sum() / weights.sum()), sums[chosen].sum(axis=1) / weights[chosen].sum(axis=1)


@lru_cache(maxsize=4)
def _resamples(count: int) -> np.ndarray:
    """[RESAMPLES, count] sequence numbers drawn with replacement."""
    return np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))
