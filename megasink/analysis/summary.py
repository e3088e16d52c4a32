"""Per-layer numbers and the table of paper.md section 3, from a sink report."""

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
    ratio = spread(report["gradient_sink_ratio"], axis=None)
    return TableRow(
        label,
        kind,
        measurement.loss,
        _mean_and_max(layers["attention_sink"]),
        _mean_and_max(layers["hidden_norm_t0"]),
        float(layers["hidden_t0_over_early"].mean()),
        _mean_and_max(layers["mlp_out_norm_t0"]),
        (float(ratio.median), float(ratio.low), float(ratio.high)),
    )


def _mean_and_max(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.max())


def attention_sink_null(seq_length: int) -> float:
    """AS of uniform causal attention, (H_T - 1) / (T - 1) (paper.md section 2)."""
    return float((1 / np.arange(2, seq_length + 1)).sum() / (seq_length - 1))
