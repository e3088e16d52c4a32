"""Intervals over sequences: how far a figure would move had other sequences of the same text been drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megasink.analysis.measured import MeasuredModel

RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ComparisonRow:
    """One figure of two models on the same sequences; `difference` is second minus first, paired by sequence."""

    name: str
    first_label: str
    second_label: str
    first: Interval
    second: Interval
    difference: Interval


def _mean_of_layers(values: np.ndarray) -> np.ndarray:
    """[R, S] indices were applied: values [R, S, L] -> [R]."""
    return values.mean(axis=(1, 2))


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values.reshape(len(values), -1), axis=1)


_FIGURES: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("valid loss", "loss", lambda values: values.mean(axis=1)),
    ("AS, mean over layers", "attention_sink", _mean_of_layers),
    ("|x_out| at t = 0, mean over layers", "hidden_t0", _mean_of_layers),
    ("t0 / early, mean over layers", "hidden_t0_over_early", _mean_of_layers),
    ("|MLP out| at t = 0, mean over layers", "mlp_t0", _mean_of_layers),
    ("R_GS(0), median over layers and sequences", "gradient_sink_ratio", _median),
    ("R_GS(0) against 1 to 15, median", "gradient_sink_ratio_early", _median),
)


def compare(first: MeasuredModel, second: MeasuredModel) -> list[ComparisonRow]:
    """Every figure of the table for two models measured on the same sequences."""
    rows = []
    for name, key, statistic in _FIGURES:
        a, b = first.trained.per_sequence[key], second.trained.per_sequence[key]
        assert len(a) == len(b), "models of one report are measured on the same sequences"
        chosen = _resamples(len(a))
        value_a, value_b = statistic(a[None])[0], statistic(b[None])[0]
        drawn_a = np.concatenate([statistic(a[part]) for part in np.array_split(chosen, 20)])
        drawn_b = np.concatenate([statistic(b[part]) for part in np.array_split(chosen, 20)])
        rows.append(
            ComparisonRow(
                name,
                first.label,
                second.label,
                _interval(value_a, drawn_a),
                _interval(value_b, drawn_b),
                _interval(value_b - value_a, drawn_b - drawn_a),
            )
        )
    return rows


def _resamples(count: int) -> np.ndarray:
    """[RESAMPLES, count] sequence numbers drawn with replacement, the same at every call."""
    return np.random.default_rng(_SEED).integers(count, size=(RESAMPLES, count))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))
