"""A naive Llama for tests: plain torch, one process, explicit attention matrix, every intermediate kept.

Written from arXiv 2603.17771 and the published Llama equations, without looking at `megasink.model`. Slow on purpose:
nothing here is fused, cached or approximated, so that in float64 it is the ground truth for logits, losses and
gradients.

Shapes: S sequences, T tokens, H hidden size, N query heads, K key-value heads, D head dim, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ReferenceConfig:
    """Shape of the model; `v_scale` is "off", "on" or "backward-only", `sigma` the std W_v was initialised with."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_base: float = 10000.0
    norm_epsilon: float = 1e-5
    v_scale: str = "off"
    sigma: float = 0.02


@dataclass
class LayerTrace:
    """One block's intermediates, all part of the autograd graph (so `torch.autograd.grad` can be asked for each)."""

    h_in: Tensor  # [S, T, H] residual stream entering the block, h^l
    attention_norm: Tensor  # [S, T, H] output of the attention RMSNorm, x~
    query_input: Tensor  # [S, T, H] x~ as the query projection sees it
    key_input: Tensor  # [S, T, H] x~ as the key projection sees it
    value_input: Tensor  # [S, T, H] x~ as the value projection sees it
    q: Tensor  # [S, T, N, D] before RoPE
    k: Tensor  # [S, T, K, D] before RoPE
    v: Tensor  # [S, T, K, D] before V-scale
    q_rotated: Tensor  # [S, T, N, D]
    k_rotated: Tensor  # [S, T, K, D]
    v_hat: Tensor  # [S, T, K, D] after V-scale (v itself when it is off)
    logits: Tensor  # [S, N, T, T] q.k / sqrt(D), minus infinity where query i may not see key j
    attention: Tensor  # [S, N, T, T] softmax of the logits
    attention_out: Tensor  # [S, T, H] r_attn
    h_mid: Tensor  # [S, T, H] h^{l+1/2}
    mlp_norm: Tensor  # [S, T, H] output of the MLP's RMSNorm
    mlp_out: Tensor  # [S, T, H]
    h_out: Tensor  # [S, T, H] h^{l+1}, the block's residual output


@dataclass
class Trace:
    """A whole forward pass. `loss` is None without labels."""

    layers: list[LayerTrace]
    logits: Tensor  # [S, T, V]
    loss: Tensor | None
    position: Tensor  # [S, T] int64, position inside the document
    document: Tensor  # [S, T] int64, number of the document inside its sequence


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * (x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + epsilon))


def rotate(x: Tensor, angle_position: Tensor, base: float) -> Tensor:
    """RoPE, half-split: component d of the first half turns together with component d of the second half.

    `x` [S, T, heads, D], `angle_position` [S, T].
    """
    half = x.shape[-1] // 2
    inverse_frequency = torch.tensor([base ** (-2.0 * d / x.shape[-1]) for d in range(half)], dtype=x.dtype)
    angle = angle_position.to(x.dtype)[:, :, None] * inverse_frequency
    cos, sin = torch.cos(angle)[:, :, None, :], torch.sin(angle)[:, :, None, :]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def v_scale(v: Tensor, theta: Tensor, hidden_size: int, sigma: float, mode: str) -> Tensor:
    """arXiv 2603.17771, literally: `v` [..., K, D], `theta` [K] (the caller's zeros in backward-only mode)."""
    if mode == "off":
        return v
    c = hidden_size * v.shape[-1] * sigma**2 * torch.exp(theta)
    r = (v * v).sum(dim=-1)
    phi = r / (r + c)
    scaled = phi[..., None] * v
    if mode == "on":
        return scaled
    if mode == "backward-only":
        return v.detach() + (scaled - scaled.detach())
    raise ValueError(f"unknown V-scale mode {mode!r}")


def document_layout(document_starts: list[list[int]] | None, num_sequences: int, length: int) -> tuple[Tensor, Tensor]:
    """(position in document, document number), both [S, T]; each sequence's starts begin with 0 and increase."""
    if document_starts is None:
        document_starts = [[0]] * num_sequences
    position = torch.zeros(num_sequences, length, dtype=torch.int64)
    document = torch.zeros(num_sequences, length, dtype=torch.int64)
    for s, starts in enumerate(document_starts):
        assert starts[0] == 0 and starts == sorted(set(starts)), starts
        for t in range(length):
            document[s, t] = sum(start <= t for start in starts) - 1
            position[s, t] = t - starts[document[s, t]]
    return position, document


def forward(
    weights: dict[str, Tensor],
    config: ReferenceConfig,
    tokens: Tensor,
    labels: Tensor | None = None,
    document_starts: list[list[int]] | None = None,
    reset_positions: bool = True,
) -> Trace:
    """Run the model on `tokens` [S, T] and keep everything.

    `weights` has Hugging Face names; without `lm_head.weight` the output is tied to the embedding. `labels` [S, T] are
    the targets of each position (already shifted), -100 where there is none. `loss` is the sum of the token cross
    entropies over the number of targets in the whole batch. With `document_starts` (one list per sequence) a token
    attends inside its document only, and RoPE counts from the document's start unless `reset_positions` is False.
    """
    num_sequences, length = tokens.shape
    position, document = document_layout(document_starts, num_sequences, length)
    rope_position = position if reset_positions else torch.arange(length).expand(num_sequences, length)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & (document[:, :, None] == document[:, None, :])

    embedding = weights["model.embed_tokens.weight"]
    h = embedding[tokens]
    layers = []
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        layers.append(_block(h, layer, config, rope_position, visible))
        h = layers[-1].h_out
    output = weights.get("lm_head.weight", embedding)
    logits = rms_norm(h, weights["model.norm.weight"], config.norm_epsilon) @ output.T

    loss = None
    if labels is not None:
        valid = labels != -100
        target = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        loss = ((torch.logsumexp(logits, dim=-1) - target) * valid).sum() / valid.sum()
    return Trace(layers, logits, loss, position, document)


def _block(h_in: Tensor, layer: dict[str, Tensor], config: ReferenceConfig, position: Tensor, visible: Tensor):
    num_sequences, length, _ = h_in.shape
    n, k_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    attention_norm = rms_norm(h_in, layer["input_layernorm.weight"], config.norm_epsilon)
    query_input, key_input, value_input = attention_norm.clone(), attention_norm.clone(), attention_norm.clone()
    q = (query_input @ layer["self_attn.q_proj.weight"].T).reshape(num_sequences, length, n, d)
    k = (key_input @ layer["self_attn.k_proj.weight"].T).reshape(num_sequences, length, k_heads, d)
    v = (value_input @ layer["self_attn.v_proj.weight"].T).reshape(num_sequences, length, k_heads, d)
    v_hat = v
    if config.v_scale != "off":
        # backward-only: theta is frozen at 0, and a checkpoint need not have it
        learned = config.v_scale == "on"
        theta = layer["self_attn.v_scale.theta"] if learned else torch.zeros(k_heads, dtype=v.dtype)
        v_hat = v_scale(v, theta, config.hidden_size, config.sigma, config.v_scale)
    q_rotated = rotate(q, position, config.rotary_base)
    k_rotated = rotate(k, position, config.rotary_base)

    group = n // k_heads  # query head j reads key-value head j // group
    keys = torch.stack([k_rotated[:, :, j // group] for j in range(n)], dim=1)  # [S, N, T, D]
    values = torch.stack([v_hat[:, :, j // group] for j in range(n)], dim=1)
    logits = q_rotated.transpose(1, 2) @ keys.transpose(2, 3) / math.sqrt(d)
    logits = logits.masked_fill(~visible[:, None], -math.inf)
    attention = torch.softmax(logits, dim=-1)
    heads = (attention @ values).transpose(1, 2).reshape(num_sequences, length, n * d)
    attention_out = heads @ layer["self_attn.o_proj.weight"].T
    h_mid = h_in + attention_out

    mlp_norm = rms_norm(h_mid, layer["post_attention_layernorm.weight"], config.norm_epsilon)
    gate = mlp_norm @ layer["mlp.gate_proj.weight"].T
    up = mlp_norm @ layer["mlp.up_proj.weight"].T
    mlp_out = (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T
    h_out = h_mid + mlp_out
    return LayerTrace(
        h_in=h_in,
        attention_norm=attention_norm,
        query_input=query_input,
        key_input=key_input,
        value_input=value_input,
        q=q,
        k=k,
        v=v,
        q_rotated=q_rotated,
        k_rotated=k_rotated,
        v_hat=v_hat,
        logits=logits,
        attention=attention,
        attention_out=attention_out,
        h_mid=h_mid,
        mlp_norm=mlp_norm,
        mlp_out=mlp_out,
        h_out=h_out,
    )
