"""Runs a model over sequences, forward and backward, through the same recorder that training uses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from megasink.analysis.measured import Measurement
from megasink.analysis.observer import Observer, Wanted
from megasink.analysis.subject import Subject, device_of, part_of
from megasink.model.documents import first_tokens
from megasink.stats.recorder import Level

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
_LOGITS_AT_ONCE = 2**29
"""Logits of a micro-batch at most: 2 GiB in fp32, of which the loss needs a few copies."""


def measure(
    subject: Subject,
    samples: np.ndarray,
    step: int | None,
    advance: Callable[[int], object],
    level: Level = "full",
    document_ids: np.ndarray | None = None,
    wanted: Wanted | None = None,
    detach_values: bool = False,
) -> Measurement:
    """Measure a model on `samples` in the precision of its weights; gradients are of the mean loss over all tokens.

    Args:
        subject: the model, without gradients of parameters (only those of activations are needed).
        samples: int64 [S, T + 1].
        step: training steps the weights have seen; None if unknown.
        advance: called with the number of tokens done after each micro-batch.
        level: which statistics; `forward` runs no backward pass.
        document_ids: int [S, T], for models that keep packed documents apart; others do not look at it.
        wanted: what to look for besides the recorder's report; None: nothing.
        detach_values: cut the value path out of the backward pass (the forward pass is the same); needs `full`.
    """
    device = device_of(subject)
    losses = []
    if not (subject.keeps_documents_apart and (subject.shape.reset_attention_mask or subject.shape.reset_position_ids)):
        document_ids = None
    apart = document_ids if subject.shape.reset_attention_mask else None
    with subject.recording() as recorder, ExitStack() as stack:
        observer = Observer(subject, recorder, wanted) if wanted is not None else None
        if observer is not None:
            stack.enter_context(observer.watching())
        if detach_values:
            for layer in range(len(subject.blocks)):
                stack.callback(part_of(subject, layer, "value").register_forward_pre_hook(_detached).remove)
        stack.enter_context(torch.set_grad_enabled(level != "forward"))
        recorder.start(level)
        for rows in _micro_batches(samples, _tokens_at_once(device, subject.shape.vocab_size)):
            tokens = torch.from_numpy(samples[rows]).to(device)
            ids = None if document_ids is None else torch.from_numpy(document_ids[rows]).to(device)
            if observer is not None:
                first = None if apart is None else first_tokens(ids)
                observer.next_batch(len(tokens), tokens.shape[1] - 1, device, first)
            losses.append(_run(subject, tokens, ids, backward=level != "forward"))
            advance(tokens[:, 1:].numel())
        # the sum's gradient is far from fp32's smallest numbers; the whole batch's mean may not be
        report = recorder.report(step, gradient_scale=1.0 / samples[:, 1:].size)
    losses = torch.cat(losses).cpu().numpy()
    if observer is None:
        return Measurement(report, {"loss": losses.mean(axis=1)}, float(losses.mean()))
    report.arrays.update(observer.arrays())
    report.meta["sink_positions"] = [str(position) for position in wanted.positions]
    report.meta["sink_thresholds"] = list(wanted.thresholds)
    per_unit = observer.unit_figures()
    per_unit["loss"] = _loss_by_unit(losses, apart)
    return Measurement(report, per_unit, float(losses.mean()))


def _run(subject: Subject, tokens: Tensor, document_ids: Tensor | None, backward: bool) -> Tensor:
    """Loss per token of tokens [B, T + 1], float64 [B, T]; with gradients of its sum if `backward`."""
    loss = subject.token_losses(tokens, document_ids)
    if backward:
        loss.sum().backward()
    return loss.detach().double()


def _detached(_module, args: tuple) -> tuple:
    return (args[0].detach().requires_grad_(True), *args[1:])


def _loss_by_unit(losses: np.ndarray, document_ids: np.ndarray | None) -> np.ndarray:
    """losses [S, T] -> the mean of each sequence, or of each document of at least two tokens."""
    if document_ids is None:
        return losses.mean(axis=1)
    begins = np.ones(document_ids.shape, bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=begins.size)
    return (np.add.reduceat(losses.ravel(), starts) / sizes)[sizes > 1]


def _tokens_at_once(device: torch.device, vocabulary: int) -> int:
    return min(_TOKENS_AT_ONCE[device.type], _LOGITS_AT_ONCE // vocabulary)


def _micro_batches(samples: np.ndarray, tokens_at_once: int) -> Iterator[slice]:
    """The samples in order, in equal parts but for the first: the recorder takes the last one's size for all."""
    size = max(1, tokens_at_once // samples.shape[1])
    first = len(samples) % size
    if first:
        yield slice(first)
    for start in range(first, len(samples), size):
        yield slice(start, start + size)
