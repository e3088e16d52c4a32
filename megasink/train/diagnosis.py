"""Where numbers stop being finite: weights, the forward pass from the bottom, the backward pass from the top."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from megasink.checkpoint.weights import hugging_face_name
from megasink.config import ModelConfig
from megasink.stats.report import SinkReport


def diagnose(model: nn.Module, config: ModelConfig, report: SinkReport | None) -> str:
    """One line about the step that `report` describes; every rank must call this and gets the same line."""
    mine = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    everywhere: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everywhere, [hugging_face_name(config, name) for name in mine])
    weights = sorted(set().union(*everywhere))
    if weights:
        return f"{len(weights)} weights are not finite themselves, among them {weights[0]}"
    return "all weights are finite" if report is None else f"all weights are finite; {where_it_begins(report)}"


def where_it_begins(report: SinkReport) -> str:
    """The first layer whose statistics are not finite."""
    forward = _layers_not_finite(report, ("value_norm", "mlp_out_norm", "hidden_norm"))
    if forward.size:
        return f"the forward pass is not finite from layer {forward[0]} on"
    backward = _layers_not_finite(report, ("value_grad_norm",))
    if backward.size:
        return f"the forward pass is finite, the backward pass is not from layer {backward[-1]} down"
    return (
        "every layer's activations and gradients were finite when the step was repeated: suspect the loss, the "
        "embedding, or the hardware"
    )


def _layers_not_finite(report: SinkReport, names: tuple[str, ...]) -> np.ndarray:
    """Layer numbers, ascending, at which any of these arrays ([L, ...]) holds NaN or infinity."""
    bad = np.zeros(report.meta["num_layers"], dtype=bool)
    for name in names:
        array = report[name]
        bad |= ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return np.flatnonzero(bad)
