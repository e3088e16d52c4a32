"""Every sink statistic of docs/sink-stats.md, by naive loops over the reference Llama's intermediates.

Shapes: L layers, S sequences, T tokens, N query heads, K key-value heads, H hidden size, X documents. A sequence
without document masking is one document; documents are numbered sequence by sequence, and "position 0" is each
document's first token. Everything is float64 (counts and positions int64); a figure that does not exist (a ratio in a
one-token document, 0/0) is NaN.
"""

import math
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from tests.reference.llama import LayerTrace, ReferenceConfig, Trace, forward

EARLY = 16  # "early" tokens are positions 1..15
GU_KEYS = 16  # alpha_k for keys 0..15
MASSIVE_ABSOLUTE, MASSIVE_RELATIVE = 100.0, 1000.0


def sink_statistics(
    weights: dict[str, Tensor],
    config: ReferenceConfig,
    tokens: Tensor,
    labels: Tensor,
    document_starts: list[list[int]] | None = None,
    reset_positions: bool = True,
    gu_length: int = 64,
) -> dict[str, Tensor]:
    """Forward, backward, and all statistics of one batch; arguments as `llama.forward`.

    The dictionary holds the groups documented at `layout`, `gradient_norms`, `branch_gradients`, `gradient_sinks`,
    `attention_patterns`, `activations`, `values` and `parameters`.
    """
    weights = {name: w.detach().double().requires_grad_(True) for name, w in weights.items()}
    trace = forward(weights, config, tokens, labels, document_starts, reset_positions)
    gradients = intermediate_gradients(trace)
    documents = _documents(trace)
    result = layout(trace, documents)
    result |= gradient_norms(gradients)
    result |= branch_gradients(trace, gradients)
    result |= gradient_sinks(result["attention_g2_norm"], documents)
    result |= attention_patterns(trace, documents, gu_length)
    result |= activations(trace, documents)
    result |= values(trace, documents)
    result |= parameters(weights, config)
    return {name: torch.as_tensor(value) for name, value in result.items()}


def intermediate_gradients(trace: Trace) -> list[dict[str, np.ndarray]]:
    """Per layer, the gradient of the whole-batch loss with respect to every intermediate, by name."""
    names = [f.name for f in fields(LayerTrace)]
    flat = [getattr(layer, name) for layer in trace.layers for name in names]
    found = torch.autograd.grad(trace.loss, flat, retain_graph=True)
    found = [g.detach().numpy() for g in found]
    return [dict(zip(names, found[i : i + len(names)], strict=True)) for i in range(0, len(found), len(names))]


def by_position(values: Tensor, position: Tensor, start: int, end: int) -> Tensor:
    """Mean of per-token `values` [..., S, T] over the tokens whose document position is in [start, end); NaN if none.

    For a ratio this is the mean of ratios; the ratio of means is the quotient of two such means.
    """
    chosen = (position >= start) & (position < end)
    return values[..., chosen].mean(dim=-1)


def layout(trace: Trace, documents) -> dict[str, np.ndarray]:
    """`position` [S,T] inside the document; `document_sequence`, `document_start`, `document_length` [X]."""
    return {
        "position": trace.position.numpy(),
        "document_sequence": np.array([s for s, _, _ in documents]),
        "document_start": np.array([start for _, start, _ in documents]),
        "document_length": np.array([end - start for _, start, end in documents]),
    }


def gradient_norms(gradients) -> dict[str, np.ndarray]:
    """Token-wise gradient norms.

    `query_grad_norm` [L,N,S,T] and `key_grad_norm` [L,K,S,T]: taken before RoPE (a rotation, so after it is the same);
    a key-value head's gradient is summed over the query heads it serves before the norm is taken.
    `value_grad_norm` [L,K,S,T]: before V-scale, |dL/dv|; `value_hat_grad_norm`: after V-scale, |dL/dv_hat|.
    `*_all` [L,S,T]: the norm over all heads together.
    """
    result = {}
    for name, key in (("query", "q"), ("key", "k"), ("value", "v"), ("value_hat", "v_hat")):
        per_head, together = [], []
        for layer in gradients:
            g = layer[key]  # [S, T, heads, D]
            per_head.append([[[_norm(g[s, t, h]) for t in _r(g, 1)] for s in _r(g, 0)] for h in _r(g, 2)])
            together.append([[_norm(g[s, t]) for t in _r(g, 1)] for s in _r(g, 0)])
        result[f"{name}_grad_norm"] = np.array(per_head)
        result[f"{name}_grad_norm_all"] = np.array(together)
    return result


def branch_gradients(trace: Trace, gradients) -> dict[str, np.ndarray]:
    """g1, g2, g3 of the attention and MLP branch, all [L,S,T] and per token.

    `{attention,mlp}_{g1,g2,g3}_norm`; `{..}_bloat` = |g2|/|g1|, `{..}_change` = |g1+g3|/|g1|, `{..}_compress` =
    |g3|/|g2|; `{..}_input_norm`: norm of the residual stream that enters the branch's RMSNorm.
    `attention_g2_{query,key,value}_norm`: the norm of the part of g2 that came through that projection, and
    `attention_g2_{query,key,value}_share`: the part's projection on g2 over |g2| (the three shares sum to 1).
    """
    result: dict[str, list] = {}

    def put(name: str, value: np.ndarray) -> None:
        result.setdefault(name, []).append(value)

    for layer, g in zip(trace.layers, gradients, strict=True):
        paths = {"query": g["query_input"], "key": g["key_input"], "value": g["value_input"]}
        branches = {
            "attention": (g["h_in"], g["attention_norm"], g["h_mid"], layer.h_in),
            "mlp": (g["h_mid"], g["mlp_norm"], g["h_out"], layer.h_mid),
        }
        for branch, (before, g2, g1, entering) in branches.items():
            g3 = before - g1
            put(f"{branch}_g1_norm", _norms(g1))
            put(f"{branch}_g2_norm", _norms(g2))
            put(f"{branch}_g3_norm", _norms(g3))
            put(f"{branch}_bloat", _divide(_norms(g2), _norms(g1)))
            put(f"{branch}_change", _divide(_norms(g1 + g3), _norms(g1)))
            put(f"{branch}_compress", _divide(_norms(g3), _norms(g2)))
            put(f"{branch}_input_norm", _norms(entering.detach().numpy()))
        for path, part in paths.items():
            g2 = g["attention_norm"]
            put(f"attention_g2_{path}_norm", _norms(part))
            put(f"attention_g2_{path}_share", _divide((part * g2).sum(axis=-1), (g2 * g2).sum(axis=-1)))
    return {name: np.stack(value) for name, value in result.items()}


def gradient_sinks(g2_norm: np.ndarray, documents) -> dict[str, np.ndarray]:
    """R_GS, each [L,X], from the attention branch's |g2| [L,S,T].

    `gradient_sink_ratio`: |g2 at 0| over the mean of |g2| at the document's other tokens. `.._strongest`: the same at
    the token with the largest |g2|, whose position is `gradient_sink_position`. `.._early`: |g2 at 0| over the mean at
    positions 1..15 (as many of them as there are).
    """
    num_layers = g2_norm.shape[0]
    names = ("gradient_sink_ratio", "gradient_sink_ratio_strongest", "gradient_sink_ratio_early")
    result = {name: np.full((num_layers, len(documents)), np.nan) for name in names}
    result["gradient_sink_position"] = np.zeros((num_layers, len(documents)), dtype=np.int64)
    for layer in range(num_layers):
        for x, (s, start, end) in enumerate(documents):
            norms = g2_norm[layer, s, start:end]
            strongest = int(np.argmax(norms))
            result["gradient_sink_position"][layer, x] = strongest
            if len(norms) < 2:
                continue
            result["gradient_sink_ratio"][layer, x] = _gradient_sink_ratio(norms, 0)
            result["gradient_sink_ratio_strongest"][layer, x] = _gradient_sink_ratio(norms, strongest)
            result["gradient_sink_ratio_early"][layer, x] = _divide(norms[0], norms[1:EARLY].mean())
    return result


def attention_patterns(trace: Trace, documents, gu_length: int) -> dict[str, np.ndarray]:
    """Who looks where. In a document, query i > 0 and its row of A.

    `attention_sink_by_document` [L,N,X]: mean over queries i > 0 of A_{i,0}; `attention_sink` [L,N]: the mean over all
    such queries of the batch (equal to the mean over documents when all have one length).
    `attention_sink_value_by_document` [L,N,X], `attention_sink_value` [L,N]: the same of A_{i,0} |v_hat_0|.
    `sink_query_share` [L,N]: share of all queries i > 0 whose largest attention is on key 0.
    `gu_alpha` [L,N,X,16]: alpha_k = sum_{i>=k} A_{i,k} / (T-k) over the document's first T = `gu_length` tokens, NaN
    for shorter documents; Gu's Sink_k^eps is the share of (document, layer, head) with alpha_k > eps.
    `attention_entropy` [L,N,S,T]: row entropy in nats. `attention_logit_max` [L,N]: largest q.k/sqrt(D) that is not
    masked; `attention_lse_max` [L,N]: largest log-sum-exp of a row (at least the largest logit).
    """
    num_layers, (num_sequences, num_heads, length, _) = len(trace.layers), trace.layers[0].attention.shape
    sink, sink_value = (np.full((num_layers, num_heads, len(documents)), np.nan) for _ in range(2))
    pooled, pooled_value, query_share = (np.zeros((num_layers, num_heads)) for _ in range(3))
    alpha = np.full((num_layers, num_heads, len(documents), GU_KEYS), np.nan)
    entropy = np.zeros((num_layers, num_heads, num_sequences, length))
    logit_max, lse_max = (np.full((num_layers, num_heads), -math.inf) for _ in range(2))
    queries = sum(end - start - 1 for _, start, end in documents)

    for ell, layer in enumerate(trace.layers):
        a, logits, v_hat = (x.detach().numpy() for x in (layer.attention, layer.logits, layer.v_hat))
        group = num_heads // v_hat.shape[2]
        for h in range(num_heads):
            for x, (s, start, end) in enumerate(documents):
                to_first = [a[s, h, i, start] for i in range(start + 1, end)]
                first_value = _norm(v_hat[s, start, h // group])
                for i in range(start + 1, end):
                    pooled[ell, h] += a[s, h, i, start] / queries
                    pooled_value[ell, h] += a[s, h, i, start] * first_value / queries
                    query_share[ell, h] += (np.argmax(a[s, h, i]) == start) / queries
                if to_first:
                    sink[ell, h, x] = sum(to_first) / len(to_first)
                    sink_value[ell, h, x] = sink[ell, h, x] * first_value
                if end - start >= gu_length:
                    for k in range(min(GU_KEYS, gu_length)):
                        column = [a[s, h, start + i, start + k] for i in range(k, gu_length)]
                        alpha[ell, h, x, k] = sum(column) / (gu_length - k)
            for s in range(num_sequences):
                for i in range(length):
                    row = a[s, h, i]
                    entropy[ell, h, s, i] = -sum(p * math.log(p) for p in row if p > 0)
                    seen = logits[s, h, i][np.isfinite(logits[s, h, i])]
                    logit_max[ell, h] = max(logit_max[ell, h], seen.max())
                    lse_max[ell, h] = max(lse_max[ell, h], math.log(np.exp(seen - seen.max()).sum()) + seen.max())
    return {
        "attention_sink_by_document": sink,
        "attention_sink": pooled,
        "attention_sink_value_by_document": sink_value,
        "attention_sink_value": pooled_value,
        "sink_query_share": query_share,
        "gu_alpha": alpha,
        "attention_entropy": entropy,
        "attention_logit_max": logit_max,
        "attention_lse_max": lse_max,
    }


def gu_sink(gu_alpha: Tensor, epsilon: float = 0.3) -> Tensor:
    """Sink_k^eps [16]: share of (document, layer, head) with alpha_k > eps, of those that have an alpha."""
    known = ~torch.isnan(gu_alpha)
    return ((gu_alpha > epsilon) & known).double().sum(dim=(0, 1, 2)) / known.double().sum(dim=(0, 1, 2))


def activations(trace: Trace, documents) -> dict[str, np.ndarray]:
    """Massive activations of `hidden` (the block's residual output x_out) and `mlp_out`.

    `{..}_norm` [L,S,T]; `{..}_t0_over_early` [L,X]: |x_0| over the mean of |x| at positions 1..15 of the document (the
    ratio of means follows from `{..}_norm` and `by_position`). Over the elements of one sequence: `{..}_abs_max`,
    `{..}_abs_median`, `{..}_top1_over_median` and `{..}_massive_count` (|a| > 100 and > 1000 x median), each [L,S].
    `{..}_kurtosis` [L]: fourth central moment over the squared variance of all elements of the batch (normal: 3);
    `{..}_kurtosis_uncentred` [L]: the same with raw moments.
    """
    result: dict[str, list] = {}

    def put(name: str, value) -> None:
        result.setdefault(name, []).append(value)

    for layer in trace.layers:
        for name, tensor in (("hidden", layer.h_out), ("mlp_out", layer.mlp_out)):
            x = tensor.detach().numpy()
            norms = _norms(x)
            put(f"{name}_norm", norms)
            early = [(norms[s, start], norms[s, start + 1 : min(end, start + EARLY)]) for s, start, end in documents]
            put(f"{name}_t0_over_early", [_divide(n0, n.mean()) if len(n) else np.nan for n0, n in early])
            magnitudes = [np.abs(sequence).reshape(-1) for sequence in x]
            medians = [np.median(m) for m in magnitudes]
            put(f"{name}_abs_max", [m.max() for m in magnitudes])
            put(f"{name}_abs_median", medians)
            put(f"{name}_top1_over_median", [m.max() / c for m, c in zip(magnitudes, medians, strict=True)])
            massive = [
                sum((m > MASSIVE_ABSOLUTE) & (m > MASSIVE_RELATIVE * c))
                for m, c in zip(magnitudes, medians, strict=True)
            ]
            put(f"{name}_massive_count", massive)
            centred = x - x.mean()
            put(f"{name}_kurtosis", (centred**4).mean() / (centred**2).mean() ** 2)
            put(f"{name}_kurtosis_uncentred", (x**4).mean() / (x**2).mean() ** 2)
    return {name: np.array(value) for name, value in result.items()}


def values(trace: Trace, documents) -> dict[str, np.ndarray]:
    """Value states per key-value head, before (`value`) and after V-scale (`value_hat`).

    `{..}_norm` [L,K,S,T]; `{..}_drain` [L,K,X]: |v_0| over the mean of |v_j| at the document's other tokens, per
    document (averaged over documents: mean of ratios); `{..}_drain_of_means` [L,K]: mean of |v_0| over documents
    divided by the mean of |v_j| over all other tokens (ratio of means).
    """
    result: dict[str, list] = {}
    for layer in trace.layers:
        for name, tensor in (("value", layer.v), ("value_hat", layer.v_hat)):
            norms = np.moveaxis(_norms(tensor.detach().numpy()), -1, 0)  # [K, S, T]
            drain, of_means = [], []
            for head in norms:
                first = [head[s, start] for s, start, _ in documents]
                others = [head[s, start + 1 : end] for s, start, end in documents]
                drain.append([_divide(v0, v.mean()) if len(v) else np.nan for v0, v in zip(first, others, strict=True)])
                rest = np.concatenate(others)
                of_means.append(_divide(np.mean(first), rest.mean()) if len(rest) else np.nan)
            result.setdefault(f"{name}_norm", []).append(norms)
            result.setdefault(f"{name}_drain", []).append(drain)
            result.setdefault(f"{name}_drain_of_means", []).append(of_means)
    return {name: np.array(value) for name, value in result.items()}


def parameters(weights: dict[str, Tensor], config: ReferenceConfig) -> dict[str, np.ndarray]:
    """`theta` and `v_scale_c` [L,K], C = d_model d_head sigma^2 exp(theta); nothing when V-scale is off."""
    if config.v_scale == "off":
        return {}
    if config.v_scale == "backward-only":
        theta = np.zeros((config.num_layers, config.num_key_value_heads))
    else:
        names = [f"model.layers.{i}.self_attn.v_scale.theta" for i in range(config.num_layers)]
        theta = np.array([weights[name].detach().numpy() for name in names])
    return {"theta": theta, "v_scale_c": config.hidden_size * config.head_dim * config.sigma**2 * np.exp(theta)}


def _documents(trace: Trace) -> list[tuple[int, int, int]]:
    """(sequence, start, end) of every document."""
    found = []
    for s, numbers in enumerate(trace.document.tolist()):
        for number in range(max(numbers) + 1):
            start = numbers.index(number)
            found.append((s, start, start + numbers.count(number)))
    return found


def _gradient_sink_ratio(norms: np.ndarray, at: int) -> float:
    others = [norm for t, norm in enumerate(norms) if t != at]
    return _divide(norms[at], sum(others) / len(others))


def _r(array: np.ndarray, axis: int) -> range:
    return range(array.shape[axis])


def _norm(vector: np.ndarray) -> float:
    return math.sqrt(float((vector * vector).sum()))


def _norms(array: np.ndarray) -> np.ndarray:
    """Norm over the last axis."""
    return np.sqrt((array * array).sum(axis=-1))


def _divide(numerator, denominator):
    """Quotient, NaN where it is 0/0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator) / np.asarray(denominator)
