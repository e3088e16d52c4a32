"""The activation-range diagnostic: what 8-bit integers cost a model, with one scale per token and with one for all.

Simulated W8A8: weights rounded to 8 bits per output channel, inputs of linear layers to 8 bits symmetrically, either
with a scale per token or with one fixed scale per layer from calibration text. A massive activation stretches the fixed
scale until all else is rounded away; a scale per token does not mind. Embedding and output layer stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from megasink.analysis.measured import QuantizedLoss
from megasink.analysis.subject import Subject, device_of
from megasink.model.block import Block

_LEVELS = 127
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TOKENS_AT_ONCE = 2048


@torch.no_grad()
def quantization_losses(
    subject: Subject, samples: np.ndarray, advance: Callable[[int], object] = lambda tokens: None
) -> list[QuantizedLoss]:
    """Mean cross entropy in bf16 and with W8A8 on all linear layers or on down_proj alone, dynamic and static scales.

    The first quarter of `samples` (int64 [S, T + 1], S >= 2) calibrates the static scales, the rest is evaluated. The
    model becomes bf16 (V-scale's theta stays as it is).
    """
    for name, parameter in subject.module.named_parameters():
        if not name.endswith("theta"):
            parameter.data = parameter.data.bfloat16()
    calibration = samples[: max(1, len(samples) // 4)]
    text = samples[len(calibration) :]
    largest = _largest_inputs(subject, calibration)

    losses = [QuantizedLoss("bf16", _loss(subject, text, advance))]
    for where, names in (("all linear layers", _LINEAR), ("down_proj only", ("down_proj",))):
        with _quantized_weights(subject, names):
            for scales, title in (("dynamic", "one scale per token"), ("static", "one fixed scale per layer")):
                hooks = _quantize_inputs(subject, names, largest if scales == "static" else None)
                losses.append(QuantizedLoss(f"W8A8 on {where}, {title}", _loss(subject, text, advance)))
                for hook in hooks:
                    hook.remove()
    return losses


def fake_quantize(values: Tensor, scale: Tensor) -> Tensor:
    """`values` rounded to the nearest of -127..127 times `scale`, in their own dtype and shape.

    `scale`: fp32, a scalar or [..., 1] with one for each last dimension of `values`.
    """
    levels = (values.float() / scale).round().clamp(-_LEVELS, _LEVELS)
    return (levels * scale).to(values.dtype)


def per_row_scale(values: Tensor) -> Tensor:
    """The scale that lets the largest |value| of each last dimension just fit, fp32 [..., 1]."""
    return _scale_for(values.abs().amax(dim=-1, keepdim=True).float())


def _scale_for(largest: Tensor) -> Tensor:
    """The scale that lets `largest` just fit; not zero, so that zeros stay zeros."""
    return (largest / _LEVELS).clamp(min=torch.finfo(torch.float32).tiny)


def _inputs(subject: Subject, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose first argument is the input of the named linear layers; in our Llama, which fuses products, q, k, v
    share one, gate and up another."""
    for layer, block in enumerate(subject.blocks):
        attention, mlp = block.self_attn, block.mlp
        if isinstance(block, Block):
            places = {"q_proj": attention, "o_proj": attention.o_proj, "gate_proj": mlp, "down_proj": mlp.down_proj}
        else:
            places = {name: getattr(attention if name[0] in "qkvo" else mlp, name) for name in _LINEAR}
        for name, module in places.items():
            if name in names:
                yield f"{layer}.{name}", module


def _quantize_inputs(subject: Subject, names: tuple[str, ...], largest: dict[str, Tensor] | None) -> list:
    """Hooks that quantise inputs with a scale per token, or with fixed ones made of `largest`."""

    def hook_for(place: str):
        def hook(module: nn.Module, args: tuple) -> tuple:
            scale = per_row_scale(args[0]) if largest is None else _scale_for(largest[place])
            return (fake_quantize(args[0], scale), *args[1:])

        return hook

    return [module.register_forward_pre_hook(hook_for(place)) for place, module in _inputs(subject, names)]


def _largest_inputs(subject: Subject, samples: np.ndarray) -> dict[str, Tensor]:
    """The largest |input| of every linear layer on `samples`, fp32 scalars."""
    largest: dict[str, Tensor] = {}

    def hook_for(place: str):
        def hook(module: nn.Module, args: tuple) -> None:
            found = args[0].abs().amax().float()
            largest[place] = torch.maximum(largest.get(place, found), found)

        return hook

    hooks = [module.register_forward_pre_hook(hook_for(place)) for place, module in _inputs(subject, _LINEAR)]
    _loss(subject, samples, lambda tokens: None)
    for hook in hooks:
        hook.remove()
    return largest


@contextmanager
def _quantized_weights(subject: Subject, names: tuple[str, ...]) -> Iterator[None]:
    """Inside, the named weights are rounded, each output channel with its own scale."""
    weights = [
        parameter
        for name, parameter in subject.module.named_parameters()
        if any(name.endswith(f".{linear}.weight") for linear in names)
    ]
    kept = [weight.clone() for weight in weights]
    for weight in weights:
        weight.copy_(fake_quantize(weight, per_row_scale(weight)))
    try:
        yield
    finally:
        for weight, original in zip(weights, kept, strict=True):
            weight.copy_(original)


def _loss(subject: Subject, samples: np.ndarray, advance: Callable[[int], object]) -> float:
    """Mean cross entropy over all tokens, nats."""
    size = max(1, _TOKENS_AT_ONCE // samples.shape[1])
    device = device_of(subject)
    total = 0.0
    for start in range(0, len(samples), size):
        tokens = torch.from_numpy(samples[start : start + size]).to(device)
        losses = subject.token_losses(tokens)
        total += float(losses.double().sum())
        advance(losses.numel())
    return total / samples[:, 1:].size
