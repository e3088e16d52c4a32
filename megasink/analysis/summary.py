"""Per-layer numbers and the report's table, from a sink report."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megasink.analysis.measured import MeasuredModel, Measurement, positions_per_bin
from megasink.stats.report import SinkReport


@dataclass(frozen=True)
class Spread:
    """Median and quartiles, each [L] or a scalar."""

    median: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class TableRow:
    """One row of the table: means over layers, the largest layer's value beside where the paper gives it."""

    label: str
    kind: str
    """`measured`, `null` (untrained weights) or `paper`."""
    valid_loss: float
    attention_sink: tuple[float, float]
    hidden_t0: tuple[float, float]
    hidden_t0_over_early: float
    mlp_t0: tuple[float, float]
    gradient_sink_ratio: tuple[float, float, float] | None = None
    """Median, lower and upper quartile over all layers and sequences."""


@dataclass(frozen=True)
class SinkRow:
    """What one position gets and is, means over sequences and layers (the gradient's ratio: median)."""

    label: str
    kind: str
    position: str
    """A number, or `auto`: the key that gets most attention."""
    attention: float
    hidden_over_others: float
    value_over_others: float
    gradient_over_others: float
    """R_GS at the position; NaN without gradients."""


@dataclass(frozen=True)
class ThresholdRow:
    """Share of (sequence, layer, head) that have a sink by Gu et al.'s measure."""

    label: str
    kind: str
    threshold: float
    at_0: float
    strongest_other_key: int
    at_other: float


_NOT_BY_LAYER = ("position_start", "position_end", "position_count", "input_norm_edge")

PAPER_MODEL = "0.3B on C4, step 20,000"

PAPER_ROWS = (
    TableRow("baseline", "paper", 2.9168, (0.6172, 0.9844), (1916, 2852), 11.12, (346, 2333)),
    TableRow("V-scale", "paper", 2.9068, (0.5018, 0.9976), (346, 617), 3.03, (75, 452)),
    TableRow("backward-only", "paper", 2.9307, (0.4583, 0.8247), (607, 952), 3.63, (113, 433)),
)


def spread(values: np.ndarray, axis: int | None = -1) -> Spread:
    """Exact median and quartiles of `values` along `axis`."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75), axis=axis)
    return Spread(median, low, high)


def per_layer(report: SinkReport) -> dict[str, np.ndarray]:
    """The per-layer numbers of the figures and the CSV, each [L].

    Whatever else the report holds by layer is among them. Gradient-sink ratios are medians and quartiles over
    sequences; norms and AS are means over sequences and heads.
    """
    columns = {
        "attention_sink": report["attention_sink"].mean(axis=1),
        "attention_sink_max_head": report["attention_sink"].max(axis=1),
        "hidden_norm_t0": report["hidden_norm"][:, 0],
        "hidden_t0_over_early": report["hidden_t0_over_early"],
        "mlp_out_norm_t0": report["mlp_out_norm"][:, 0],
        "value_norm_t0": report["value_norm"][:, :, 0].mean(axis=1),
        "value_norm_others": _mean_after_first(report, report["value_norm"].mean(axis=1)),
    }
    for name in ("gradient_sink_ratio", "gradient_sink_ratio_early"):
        if name not in report.arrays:
            continue
        ratio = spread(report[name])
        columns |= {f"{name}_median": ratio.median, f"{name}_q25": ratio.low, f"{name}_q75": ratio.high}
    by_layer = {name: array for name, array in report.arrays.items() if array.shape == columns["attention_sink"].shape}
    return columns | {name: array for name, array in by_layer.items() if name not in _NOT_BY_LAYER}


def _mean_after_first(report: SinkReport, binned: np.ndarray) -> np.ndarray:
    """Mean over positions t > 0 of a binned figure [L, P], bins weighted by the positions they hold: [L]."""
    weights = positions_per_bin(report)[1:]
    return binned[:, 1:] @ weights / weights.sum()


def table_rows(models: list[MeasuredModel]) -> list[TableRow]:
    """Each model's row followed by its null's."""
    rows = []
    for model in models:
        rows.append(_row(model.label, "measured", model.trained))
        if model.untrained is not None:
            rows.append(_row(model.label, "null", model.untrained))
    return rows


def _row(label: str, kind: str, measurement: Measurement) -> TableRow:
    report = measurement.report
    layers = per_layer(report)
    ratio = None
    if "gradient_sink_ratio" in report.arrays:
        found = spread(report["gradient_sink_ratio"], axis=None)
        ratio = float(found.median), float(found.low), float(found.high)
    return TableRow(
        label,
        kind,
        measurement.loss,
        _mean_and_max(layers["attention_sink"]),
        _mean_and_max(layers["hidden_norm_t0"]),
        float(layers["hidden_t0_over_early"].mean()),
        _mean_and_max(layers["mlp_out_norm_t0"]),
        ratio,
    )


def sink_rows(model: MeasuredModel) -> list[SinkRow]:
    """Sinks at each position that was looked at, the trained model's row followed by its null's."""
    rows = []
    for kind, measurement in (("measured", model.trained), ("null", model.untrained)):
        if measurement is None:
            continue
        found = measurement.per_sequence
        for name in measurement.report.meta.get("sink_positions", ()):
            values = {
                figure: _over_known(np.mean, found.get(f"{figure}_{name}"))
                for figure in ("attention_to", "hidden_over_others", "value_over_others")
            }
            ratio = _over_known(np.median, found.get(f"gradient_over_others_{name}"))
            rows.append(SinkRow(model.label, kind, name, *values.values(), ratio))
    return rows


def _over_known(statistic: Callable[[np.ndarray], float], values: np.ndarray | None) -> float:
    """Over what is not NaN (documents too short for a position are); NaN where nothing is left."""
    known = values[np.isfinite(values)] if values is not None else np.zeros(0)
    return float(statistic(known)) if known.size else math.nan


def threshold_rows(model: MeasuredModel) -> list[ThresholdRow]:
    """Gu et al.'s Sink_k^eps for key 0 and for the strongest other key, for each threshold."""
    rows = []
    for kind, report in (("measured", model.report), ("null", model.null)):
        if report is None or "gu_sink_by_threshold" not in report.arrays:
            continue
        shares = report["gu_sink_by_threshold"].mean(axis=(0, 1))  # [E, keys]
        for eps, by_key in zip(report.meta["sink_thresholds"], shares, strict=True):
            other = 1 + int(by_key[1 : max(2, len(by_key) // 2)].argmax())
            rows.append(ThresholdRow(model.label, kind, eps, float(by_key[0]), other, float(by_key[other])))
    return rows


def _mean_and_max(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.max())


def attention_sink_null(seq_length: int) -> float:
    """AS of uniform causal attention, (H_T - 1) / (T - 1)."""
    return float((1 / np.arange(2, seq_length + 1)).sum() / (seq_length - 1))
