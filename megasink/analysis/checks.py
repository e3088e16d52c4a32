"""Checks that run with every analysis: what was measured against the same thing computed in another way."""

import math

import numpy as np
import torch
from torch import Tensor

from megasink.analysis.measure import measure
from megasink.analysis.measured import Check
from megasink.model.attention import causal_attention
from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.model.rope import apply_rotary, rotary_tables

_LENGTH = 64
_LARGEST_IN_DOUBLE = 500_000_000  # parameters; a larger model is not copied to float64


def check_model(model: Llama, sample: np.ndarray) -> list[Check]:
    """Compare, on the beginning of one sequence int64 [T + 1] and in the middle layer.

    The model must be on its device without gradients of parameters, and is left so.
    """
    text = sample[: _LENGTH + 1]
    layer = model.config.num_layers // 2
    query, key = _rotated(model, torch.from_numpy(text[:-1]).to(next(model.parameters()).device), layer)
    found = measure(model, text[None], 0, lambda tokens: None, level="light").report
    return [
        *_check_attention(query, key, found["attention_sink"][layer]),
        _check_theta(model, found.arrays.get("theta")),
        _check_gradient(model, text, layer),
    ]


@torch.no_grad()
def _rotated(model: Llama, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Queries and keys [1, N, T, D] of one layer after RoPE, keys repeated to the query heads."""
    block = blocks_of(model)[layer]
    entering = []
    handle = block.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    model(tokens[None])
    handle.remove()
    states = block.input_layernorm(entering[0])
    attention, width = block.self_attn, model.config.kv_channels
    query, key = (
        torch.nn.functional.linear(states, projection.weight).unflatten(-1, (-1, width))
        for projection in (attention.q_proj, attention.k_proj)
    )
    cos, sin = rotary_tables(model.config, tokens.numel(), states.device, states.dtype)
    query, key = (apply_rotary(part, cos, sin).transpose(1, 2) for part in (query, key))
    return query, key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


def _check_attention(query: Tensor, key: Tensor, sink: np.ndarray) -> list[Check]:
    """The fused kernel's log-sum-exp and the AS made from it, against the whole matrix in float64."""
    logits = query.double() @ key.double().transpose(-1, -2) / math.sqrt(query.shape[-1])
    future = torch.ones_like(logits, dtype=torch.bool).triu(1)
    logits = logits.masked_fill(future, -math.inf)
    _, log_sum_exp = causal_attention(query, key, key)
    row_sums = (logits - log_sum_exp.double()[..., None]).exp().sum(dim=-1)
    explicit = logits.softmax(dim=-1)[0, :, 1:, 0].mean(dim=-1).cpu().numpy()
    return [
        Check("attention rows sum to 1", float((row_sums - 1).abs().max()), 1e-4),
        Check("log-sum-exp against the whole matrix", float((logits.logsumexp(-1) - log_sum_exp).abs().max()), 1e-4),
        Check("AS against the whole matrix", float(np.abs(explicit - sink).max()), 1e-4),
    ]


def _check_theta(model: Llama, reported: np.ndarray | None) -> Check:
    name = "theta reported as it is stored"
    if model.config.v_scale != "on":
        return Check(name, None, 0.0, "no learned V-scale")
    stored = np.stack([block.self_attn.v_scale.theta.cpu().numpy() for block in blocks_of(model)])
    return Check(name, float(np.abs(stored - reported).max()), 0.0, f"{stored.size} values")


def _check_gradient(model: Llama, text: np.ndarray, layer: int) -> Check:
    """The loss along one direction of the attention norm's weight: backward pass against a difference, in float64.

    Backward-only V-scale changes gradients on purpose; there the last MLP's norm is taken, which no value depends on.
    """
    name = "gradient against a finite difference"
    if sum(parameter.numel() for parameter in model.parameters()) > _LARGEST_IN_DOUBLE:
        return Check(name, None, 1e-5, "left out: too large a model for float64")
    tokens = torch.from_numpy(text)[None]
    double = Llama(model.config)  # on the CPU: the GPU's attention kernels know no float64
    double.load_state_dict(model.state_dict())
    double.double().requires_grad_(False)
    backward_only = model.config.v_scale == "backward-only"
    blocks = blocks_of(double)
    weight = (blocks[-1].post_attention_layernorm if backward_only else blocks[layer].input_layernorm).weight
    original = weight.detach().clone()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss() -> Tensor:
        return token_losses(double(tokens[:, :-1]), tokens[:, 1:], double.config, double.layout).mean()

    weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(), weight)
    losses = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            weight.copy_(original + step * direction)
            losses.append(float(loss()))
    expected = float((gradient * direction).sum())
    error = abs((losses[0] - losses[1]) / 2e-5 - expected) / max(abs(expected), 1e-12)
    return Check(name, error, 1e-5)
