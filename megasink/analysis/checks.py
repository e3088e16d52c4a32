"""Checks that run with every analysis: what was measured against the same thing computed in another way."""

import math

import numpy as np
import torch
from torch import Tensor

from megasink.analysis.measured import Check
from megasink.analysis.subject import Subject, device_of, part_of
from megasink.model.llama import blocks_of
from megasink.model.taps import BlockTaps
from megasink.stats.recorder import SinkRecorder

_LENGTH = 64
_LARGEST_IN_DOUBLE = 500_000_000  # parameters; a larger model is not copied to float64


def check_model(subject: Subject, sample: np.ndarray, gradients: bool = True) -> list[Check]:
    """Compare, on the beginning of one sequence int64 [T + 1] and in the middle layer.

    The model must be on its device without gradients of parameters, and is left so. `gradients`: the backward pass too.
    """
    text = sample[: _LENGTH + 1]
    layer = subject.shape.num_layers // 2
    tokens = torch.from_numpy(text).to(device_of(subject))[None]
    with subject.recording() as recorder, torch.no_grad():
        attention = _OneAttention(recorder, layer)
        recorder.start("forward")
        subject.token_losses(tokens)
        found = recorder.report(0)
    checks = [
        *_check_attention(*attention.states, found["attention_sink"][layer]),
        _check_theta(subject, found.arrays.get("theta")),
    ]
    return [*checks, _check_gradient(subject, text, layer)] if gradients else checks


class _OneAttention:
    """Stands between the blocks and their recorder, and keeps what one layer attends with."""

    def __init__(self, recorder: SinkRecorder, layer: int):
        self.recorder = recorder
        self.layer = layer
        for block in recorder.blocks:
            block.recorder = self

    def open(self, layer_index: int, hidden_states: Tensor, first_token: Tensor | None = None) -> BlockTaps | None:
        taps = self.recorder.open(layer_index, hidden_states, first_token)
        return taps if layer_index != self.layer else taps._replace(attention_observer=self._keep)

    def _keep(self, query: Tensor, key: Tensor, value_hat: Tensor, lse: Tensor, first_token: Tensor | None) -> None:
        self.states = query, key, lse


def _check_attention(query: Tensor, key: Tensor, log_sum_exp: Tensor, sink: np.ndarray) -> list[Check]:
    """The fused kernel's log-sum-exp and the AS made from it, against the whole matrix in float64."""
    logits = query.double() @ key.double().transpose(-1, -2) / math.sqrt(query.shape[-1])
    future = torch.ones_like(logits, dtype=torch.bool).triu(1)
    logits = logits.masked_fill(future, -math.inf)
    row_sums = (logits - log_sum_exp.double()[..., None]).exp().sum(dim=-1)
    explicit = logits.softmax(dim=-1)[0, :, 1:, 0].mean(dim=-1).cpu().numpy()
    return [
        Check("attention rows sum to 1", float((row_sums - 1).abs().max()), 1e-4),
        Check("log-sum-exp against the whole matrix", float((logits.logsumexp(-1) - log_sum_exp).abs().max()), 1e-4),
        Check("AS against the whole matrix", float(np.abs(explicit - sink).max()), 1e-4),
    ]


def _check_theta(subject: Subject, reported: np.ndarray | None) -> Check:
    name = "theta reported as it is stored"
    if subject.shape.v_scale != "on":
        return Check(name, None, 0.0, "no learned V-scale")
    thetas = [block.self_attn.v_scale.theta for block in blocks_of(subject.module)]
    if thetas[0].is_meta:
        return Check(name, None, 0.0, "left out: the weights are streamed")
    stored = np.stack([theta.cpu().numpy() for theta in thetas])
    return Check(name, float(np.abs(stored - reported).max()), 0.0, f"{stored.size} values")


def _check_gradient(subject: Subject, text: np.ndarray, layer: int) -> Check:
    """The loss along one direction of the attention norm's weight: backward pass against a difference, in float64.

    Backward-only V-scale changes gradients on purpose; there the last MLP's norm is taken, which no value depends on.
    """
    name = "gradient against a finite difference"
    limit = 1e-5 if subject.exact_in_double else 2e-2
    if sum(parameter.numel() for parameter in subject.module.parameters()) > _LARGEST_IN_DOUBLE:
        return Check(name, None, limit, "left out: too large a model for float64")
    tokens = torch.from_numpy(text)[None]
    double = subject.copy_in_double()
    if subject.shape.v_scale == "backward-only":
        weight = part_of(double, subject.shape.num_layers - 1, "mlp_norm").weight
    else:
        weight = part_of(double, layer, "attention_norm").weight
    original = weight.detach().clone()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(double.token_losses(tokens).mean(), weight)
    step = 1e-5 if subject.exact_in_double else 1e-3
    losses = []
    with torch.no_grad():
        for signed in (step, -step):
            weight.copy_(original + signed * direction)
            losses.append(float(double.token_losses(tokens).mean()))
    expected = float((gradient * direction).sum())
    error = abs((losses[0] - losses[1]) / (2 * step) - expected) / max(abs(expected), 1e-12)
    return Check(name, error, limit)
