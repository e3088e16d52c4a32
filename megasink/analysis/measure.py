"""Runs a model over sequences, forward and backward, through the same recorder that training uses."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from megasink.analysis.measured import Measurement
from megasink.analysis.per_sequence import PerSequenceRecorder
from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.stats.recorder import Level, SinkRecorder

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}


def measure(
    model: Llama, samples: np.ndarray, step: int | None, advance: Callable[[int], object], level: Level = "full"
) -> Measurement:
    """Measure `model` on `samples` in the precision of its weights; gradients are of the mean loss over all tokens.

    Args:
        model: on its device, without gradients of parameters (only those of activations are needed).
        samples: int64 [S, T + 1].
        step: training steps the weights have seen; None if unknown.
        advance: called with the number of tokens done after each micro-batch.
        level: which statistics.
    """
    device = next(model.parameters()).device
    blocks = blocks_of(model)
    recorder = SinkRecorder(model.config, model.layout, blocks)
    per_sequence = PerSequenceRecorder(recorder, blocks)
    recorder.start(level)
    losses = []
    for batch in _micro_batches(samples, _TOKENS_AT_ONCE[device.type]):
        tokens = torch.from_numpy(batch).to(device)
        losses.append(_backward(model, tokens))
        advance(batch[:, 1:].size)
    # the sum's gradient is far from fp32's smallest numbers; the whole batch's mean may not be
    report = recorder.report(step, gradient_scale=1.0 / samples[:, 1:].size)
    for block in blocks:
        block.recorder = None
    return Measurement(report, {"loss": torch.cat(losses).cpu().numpy()} | per_sequence.collect())


def _backward(model: Llama, tokens: Tensor) -> Tensor:
    """Gradients of the summed loss of tokens [B, T + 1]; returns each sequence's mean loss, float64 [B]."""
    loss = token_losses(model(tokens[:, :-1]), tokens[:, 1:], model.config, model.layout)
    loss.sum().backward()
    return loss.detach().double().mean(dim=1)


def _micro_batches(samples: np.ndarray, tokens_at_once: int) -> Iterator[np.ndarray]:
    """The samples in order, in equal parts but for the first: the recorder takes the last one's size for all."""
    size = max(1, tokens_at_once // samples.shape[1])
    first = len(samples) % size
    if first:
        yield samples[:first]
    for start in range(first, len(samples), size):
        yield samples[start : start + size]
