"""Runs a model over sequences, forward and backward, through the same recorder that training uses."""

from collections.abc import Callable

import numpy as np
import torch

from megasink.analysis.measured import Measurement
from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.stats.measures import ratios_of_means
from megasink.stats.recorder import SinkRecorder
from megasink.stats.report import SinkReport

_SAME_FOR_ALL = ("position_start", "position_end", "theta", "v_scale_c")


def measure(model: Llama, samples: np.ndarray, step: int | None, advance: Callable[[], None]) -> Measurement:
    """Measure `model` on `samples`, in the precision of its weights.

    Each sequence is recorded by itself, so that intervals over sequences can be given; the report of all is their mean,
    exactly what one report over the whole batch would hold. Gradients are those of the mean loss over all tokens.

    Args:
        model: on its device, without gradients of parameters (only those of activations are needed).
        samples: int64 [S, T + 1].
        step: training steps the weights have seen; None if unknown.
        advance: called after each sequence.

    Raises:
        RuntimeError: out of memory.
    """
    device = next(model.parameters()).device
    recorder = SinkRecorder(model.config, model.layout, blocks_of(model))
    reports, losses = [], []
    for sample in samples:
        tokens = torch.from_numpy(sample).to(device)
        recorder.start()
        loss = token_losses(model(tokens[None, :-1]), tokens[None, 1:], model.config, model.layout)
        loss.sum().backward()
        # the sum's gradient is far from fp32's smallest numbers; the whole batch's mean may not be
        reports.append(recorder.report(step, gradient_scale=1.0 / samples[:, 1:].size))
        losses.append(float(loss.detach().double().mean()))
        advance()
    return Measurement(_mean_report(reports), _per_sequence(reports, losses))


def _mean_report(reports: list[SinkReport]) -> SinkReport:
    """One report over all sequences from one report each."""
    arrays = {}
    for name, first in reports[0].arrays.items():
        each = [report[name] for report in reports]
        if name in _SAME_FOR_ALL:
            arrays[name] = first
        elif name.startswith("gradient_sink_"):  # one figure per sequence
            arrays[name] = np.concatenate(each, axis=1)
        elif name.endswith("_max"):
            arrays[name] = np.max(each, axis=0)
        elif name == "position_count":
            arrays[name] = np.sum(each, axis=0)
        else:
            arrays[name] = np.mean(each, axis=0)
    arrays |= ratios_of_means(arrays)
    count = len(reports)
    meta = reports[0].meta | {"sequences": count, "tokens": count * reports[0].meta["seq_length"]}
    return SinkReport(meta, arrays)


def _per_sequence(reports: list[SinkReport], losses: list[float]) -> dict[str, np.ndarray]:
    """The table's figures by sequence and layer, [S, L]."""
    figures = {
        "attention_sink": [report["attention_sink"].mean(axis=1) for report in reports],
        "hidden_t0": [report["hidden_norm"][:, 0] for report in reports],
        "hidden_t0_over_early": [report["hidden_t0_over_early"] for report in reports],
        "mlp_t0": [report["mlp_out_norm"][:, 0] for report in reports],
        "gradient_sink_ratio": [report["gradient_sink_ratio"][:, 0] for report in reports],
        "gradient_sink_ratio_early": [report["gradient_sink_ratio_early"][:, 0] for report in reports],
    }
    return {"loss": np.array(losses)} | {name: np.stack(rows) for name, rows in figures.items()}
