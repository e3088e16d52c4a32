"""What was measured, in words: the methods box of the report."""

import importlib.metadata
import platform
import resource

import torch

import megasink
from megasink.analysis.bootstrap import RESAMPLES, SEED
from megasink.analysis.request import AnalysisRequest
from megasink.analysis.source import Source
from megasink.analysis.subject import Subject
from megasink.analysis.tokens import TokenSequences
from megasink.checkpoint.hugging_face_config import initial_c
from megasink.model.llama import blocks_of

DEFINITIONS = {
    "AS": "attention to token 0: mean over queries i > 0 of A_{i,0}, per head; a layer's is the mean of its heads",
    "|x_out|, |MLP out|": "L2 norm of the block's residual output, and of the MLP's output, at a token",
    "t0 / early": "the norm at token 0 over its mean at positions 1 to 15, by sequence",
    "g1, g2, g3": "dL/d(residual stream after the branch); dL/d(RMSNorm's output); J_RMSNorm^T g2",
    "Bloat, Change, Compress": "|g2|/|g1|, |g1+g3|/|g1|, |g3|/|g2| of each token",
    "R_GS(s)": "|g2 at s| over the mean of |g2| at the other tokens, per sequence and layer; exact medians",
    "Sink_k^eps": "Gu et al.: share of (sequence, head) with sum_{i>=k} A_{i,k} / (T - k) > eps, T = 64",
    "massive activation": "Sun et al.: |a| > 100 and > 1000 x the sequence's median, elements of the block's output",
    "value drain": "|v_0| over the mean of the other |v_t|",
    "null": "the same figure of the same shape with untrained weights, on the same tokens",
    "interval": "95 % percentile bootstrap over sequences (documents, where kept apart); differences are paired",
}


def describe_request(
    request: AnalysisRequest, device: torch.device, command: str, settings: list[TokenSequences]
) -> dict[str, str]:
    """Name -> text, in the order to show it."""
    libraries = ("torch", "transformers", "numpy", "matplotlib")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    passes = "forward only, weights read block by block" if request.metrics == "forward" else "forward and backward"
    return {
        "data": request.data,
        "tokens": "; ".join(f"{part.title}: {part.num_tokens:,} tokens, SHA-256 {part.digest}..." for part in settings),
        "data digests": "one text for all models of a setting, so equal by construction",
        "precision": f"fp32, {passes}, on {device}",
        "loss": "mean cross entropy over these tokens; gradients are those of this mean",
        "sinks looked for": f"at positions {request.sink_pos}; thresholds {request.eps}",
        "bootstrap": f"{RESAMPLES:,} resamples, seed {SEED}",
        "command": command,
        "versions": f"megasink {megasink.__version__}, {versions}, Python {platform.python_version()}",
        "peak memory": peak_memory(device),
    }


def _v_scale(subject: Subject) -> str:
    """The mode, and what was found of its parameters."""
    if subject.shape.v_scale != "on":
        return subject.shape.v_scale
    text = f"on, C_0 = {initial_c(subject.shape):.4g}"
    thetas = [block.self_attn.v_scale.theta for block in blocks_of(subject.module)]
    if thetas[0].is_meta:
        return f"{text}, theta read with its block"
    found = torch.cat(thetas)
    return f"{text}, {found.numel()} thetas from {found.min():+.3g} to {found.max():+.3g}"


def peak_memory(device: torch.device) -> str:
    """Of this process so far."""
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of main memory"
    if device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of GPU memory"
    return text


def describe_model(source: Source, subject: Subject) -> dict[str, str]:
    """Name -> text, in the order to show it."""
    config = source.config.model
    width = f"{config.num_layers} layers, width {config.hidden_size}"
    heads = f"{config.num_attention_heads} query heads, {config.num_key_value_heads} key-value heads"
    apart = config.reset_attention_mask and subject.keeps_documents_apart
    return {
        "step": "not stated" if source.step is None else f"{source.step:,}",
        "kind": "Llama" if source.family == "megasink" else f"{source.family}, by transformers",
        "parameters": f"{sum(parameter.numel() for parameter in subject.module.parameters()):,}",
        "shape": f"{width}, {heads} of {config.kv_channels}, vocabulary {config.vocab_size:,}",
        "V-scale": _v_scale(subject),
        "documents": "kept apart: token 0 is each document's first" if apart else "a sequence is one document",
    }
