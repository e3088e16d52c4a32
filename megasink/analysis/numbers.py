"""The report's numbers for other programs: metrics.json, by_sequence.npz, CSV tables per layer and per head."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson

from megasink.analysis.about import DEFINITIONS
from megasink.analysis.measured import MeasuredModel, Measurement
from megasink.analysis.section import Section
from megasink.analysis.summary import PAPER_MODEL, PAPER_ROWS, per_layer, sink_rows, table_rows, threshold_rows
from megasink.analysis.tokens import TokenSequences
from megasink.stats.report import SinkReport

SCHEMA = "megasink.analysis/3"
_BY_QUERY_HEAD = (
    "attention_sink",
    "attention_sink_value",
    "sink_query_share",
    "attention_logit_max",
    "attention_lse_max",
)
_BY_KEY_VALUE_HEAD = ("value_drain", "value_hat_drain", "value_path_share_by_head", "theta", "v_scale_c")
_BY_DOCUMENT = (
    "gradient_sink_ratio",
    "gradient_sink_ratio_early",
    "gradient_sink_ratio_strongest",
    "gradient_sink_position",
)


def metrics_json(sections: list[Section], about: dict[str, str]) -> bytes:
    """Everything measured but what grows with the text: `about` (what and how), and by setting the table and the arrays
    of every model.

    NaN and infinity, which JSON cannot hold, become null.
    """
    document = {
        "schema": SCHEMA,
        "about": about,
        "definitions": DEFINITIONS,
        "paper_reference": {"model": PAPER_MODEL, "table": [asdict(row) for row in PAPER_ROWS]},
        "settings": [
            {
                "name": section.sequences.name,
                **_setting(section.sequences),
                "data": section.sequences.description,
                "data_digest": section.sequences.digest,
                "table": [asdict(row) for row in table_rows(section.models)],
                "comparisons": [[asdict(row) for row in rows] for rows in section.comparisons],
                "intervals": {
                    model.label: [asdict(row) for row in rows]
                    for model, rows in zip(section.models, section.intervals, strict=True)
                },
                "sinks": [asdict(row) for model in section.models for row in sink_rows(model)],
                "thresholds": [asdict(row) for model in section.models for row in threshold_rows(model)],
                "models": [_model(model) for model in section.models],
            }
            for section in sections
        ],
    }
    return orjson.dumps(document, _not_contiguous, orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def by_sequence_npz(sections: list[Section]) -> bytes:
    """Every figure by sequence, [S, L] or [S], as `setting/model/weights/figure`; as JSON they outweigh all else."""
    arrays = {
        f"{section.sequences.name}/{model.label}/{part}/{figure}": array
        for section in sections
        for model in section.models
        for part, figures in _parts_by_sequence(model).items()
        for figure, array in figures.items()
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def layers_csv(sections: list[Section]) -> str:
    """One row per setting, model, weights (trained or untrained) and layer."""
    rows = []
    for place, report in _all_reports(sections):
        columns = per_layer(report)
        for layer in range(report.meta["num_layers"]):
            values = {name: repr(float(column[layer])) for name, column in columns.items()}
            rows.append(place | {"layer": layer} | values)
    return _csv(rows)


def heads_csv(sections: list[Section]) -> str:
    """One row per setting, model, weights, layer and query head: what the report holds by query head, and by the
    key-value head that it reads."""
    rows = []
    for place, report in _all_reports(sections):
        figures = _by_query_head(report)
        for layer, head in np.ndindex(report["attention_sink"].shape):
            values = {name: repr(float(array[layer, head])) for name, array in figures.items()}
            rows.append(place | {"layer": layer, "head": head} | values)
    return _csv(rows)


def _by_query_head(report: SinkReport) -> dict[str, np.ndarray]:
    """Columns [L, N]."""
    figures = {name: report[name] for name in _BY_QUERY_HEAD if name in report.arrays}
    for place, eps in enumerate(report.meta.get("sink_thresholds", ())):
        figures[f"gu_sink_above_{eps:g}"] = report["gu_sink_by_threshold"][:, :, place, 0]
    group = report.meta["num_attention_heads"] // report.meta["num_key_value_heads"]
    figures["key_value_head"] = np.broadcast_to(
        np.arange(report.meta["num_attention_heads"]) // group, report["attention_sink"].shape
    )
    shared = {name: report[name] for name in _BY_KEY_VALUE_HEAD if name in report.arrays}
    return figures | {name: array.repeat(group, axis=1) for name, array in shared.items()}


def _all_reports(sections: list[Section]) -> Iterator[tuple[dict[str, Any], SinkReport]]:
    for section in sections:
        for model in section.models:
            place = _setting(section.sequences) | {"model": model.label}
            yield place | {"weights": "trained"}, model.report
            if model.null is not None:
                yield place | {"weights": "untrained"}, model.null


def _setting(sequences: TokenSequences) -> dict[str, Any]:
    return {"seq_length": sequences.seq_length, "bos": sequences.bos}


def _model(model: MeasuredModel) -> dict[str, Any]:
    return {
        "label": model.label,
        "source": model.source,
        "null_source": model.null_source,
        "details": model.details,
        "checks": [asdict(check) | {"passed": check.passed} for check in model.checks],
        "quantization": [asdict(row) | {"perplexity": row.perplexity} for row in model.quantization],
        "trained": _measurement(model.trained),
        "untrained": _measurement(model.untrained) if model.untrained is not None else None,
        "counterfactual": {
            name: None if report is None else _report(report)
            for name, report in (("whole", model.value_attached), ("value_path_cut", model.value_detached))
        },
    }


def _measurement(measurement: Measurement) -> dict[str, Any]:
    return {**_report(measurement.report), "loss": measurement.loss}


def _report(report: SinkReport) -> dict[str, Any]:
    arrays = {name: array for name, array in report.arrays.items() if not _is_by_sequence(name)}
    return {"meta": report.meta, "arrays": arrays}


def _parts_by_sequence(model: MeasuredModel) -> dict[str, dict[str, np.ndarray]]:
    """Figures by sequence of each part of `_model`. Those that a measurement and its report both have are the same."""
    parts = {"trained": _by_sequence(model.report) | model.trained.per_sequence}
    if model.untrained is not None:
        parts["untrained"] = _by_sequence(model.untrained.report) | model.untrained.per_sequence
    for name, report in (("whole", model.value_attached), ("value_path_cut", model.value_detached)):
        if report is not None:
            parts[f"counterfactual/{name}"] = _by_sequence(report)
    return parts


def _by_sequence(report: SinkReport) -> dict[str, np.ndarray]:
    """Of a report, [L, S] there, with sequences first as a measurement has them."""
    return {name: array.T for name, array in report.arrays.items() if _is_by_sequence(name)}


def _is_by_sequence(name: str) -> bool:
    return name in _BY_DOCUMENT or "_by_sequence_" in name


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _not_contiguous(value: Any) -> Any:
    """The arrays that orjson does not read as they lie."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(type(value))
