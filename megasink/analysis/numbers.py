"""The report's numbers for other programs: metrics.json and CSV tables per layer and per head."""

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np

from megasink.analysis.bootstrap import ComparisonRow
from megasink.analysis.measured import MeasuredModel, Measurement
from megasink.analysis.summary import PAPER_MODEL, PAPER_ROWS, per_layer, table_rows

SCHEMA = "megasink.analysis/1"


def metrics_json(models: list[MeasuredModel], comparison: list[ComparisonRow], run: dict[str, Any]) -> str:
    """Everything measured: `run` (what and how), the table, and every array of every model and its null.

    NaN and infinity, which JSON cannot hold, become null.
    """
    document = {
        "schema": SCHEMA,
        "run": run,
        "table": [asdict(row) for row in table_rows(models)],
        "comparison": [asdict(row) for row in comparison],
        "paper_reference": {"model": PAPER_MODEL, "table": [asdict(row) for row in PAPER_ROWS]},
        "models": [
            {
                "label": model.label,
                "source": model.source,
                "null_source": model.null_source,
                "details": model.details,
                "trained": _measurement(model.trained),
                "untrained": _measurement(model.untrained) if model.untrained is not None else None,
            }
            for model in models
        ],
    }
    return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def layers_csv(models: list[MeasuredModel]) -> str:
    """One row per model, weights (trained or untrained) and layer."""
    rows = []
    for label, weights, report in _all_reports(models):
        columns = per_layer(report)
        for layer in range(report.meta["num_layers"]):
            values = {name: repr(float(column[layer])) for name, column in columns.items()}
            rows.append({"model": label, "weights": weights, "layer": layer} | values)
    return _csv(rows)


def heads_csv(models: list[MeasuredModel]) -> str:
    """One row per model, weights, layer and query head: AS."""
    rows = []
    for label, weights, report in _all_reports(models):
        for layer, heads in enumerate(report["attention_sink"]):
            for head, sink in enumerate(heads):
                place = {"model": label, "weights": weights, "layer": layer, "head": head}
                rows.append(place | {"attention_sink": repr(float(sink))})
    return _csv(rows)


def _all_reports(models: list[MeasuredModel]):
    for model in models:
        yield model.label, "trained", model.report
        if model.null is not None:
            yield model.label, "untrained", model.null


def _measurement(measurement: Measurement) -> dict[str, Any]:
    report = measurement.report
    return {
        "meta": report.meta,
        "loss": measurement.loss,
        "arrays": {name: array.tolist() for name, array in report.arrays.items()},
        "per_sequence": {name: array.tolist() for name, array in measurement.per_sequence.items()},
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
