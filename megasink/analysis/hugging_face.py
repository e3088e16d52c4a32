"""Hugging Face folders whose model is our Llama by another name: their configuration, read without running code."""

import json
from pathlib import Path
from typing import Any

from megasink.config import DataConfig, ModelConfig, RunConfig
from megasink.errors import UserError
from megasink.tokenize.tokenizers import SENTENCEPIECE_NAMES

_FAMILIES = ("llama", "mistral")
_MUST_BE = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def is_hugging_face(folder: Path) -> bool:
    """Whether `folder` has a config.json that names a model type (and no config.yaml of ours)."""
    return (folder / "config.json").is_file() and not (folder / "config.yaml").is_file()


def read_hugging_face_config(folder: Path) -> RunConfig:
    """The configuration of a Llama-shaped model; its tokenizer is the folder itself where it has one.

    Raises:
        UserError: an unreadable config.json, or a model with parts that our Llama lacks (biases, RoPE scaling, ...).
    """
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        family = stored["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a Hugging Face model configuration (no readable model_type)") from None
    if family not in _FAMILIES:
        raise UserError(f"{path}: model_type {family!r} is not supported yet; supported: {', '.join(_FAMILIES)}")
    for name, wanted in _MUST_BE.items():
        if stored.get(name, wanted) != wanted:
            raise UserError(f"{path}: {name} is {stored[name]!r}; only {wanted!r} is supported")
    try:
        model = ModelConfig(
            num_layers=stored["num_hidden_layers"],
            hidden_size=stored["hidden_size"],
            ffn_hidden_size=stored["intermediate_size"],
            num_attention_heads=stored["num_attention_heads"],
            num_query_groups=stored.get("num_key_value_heads"),
            head_dim=stored.get("head_dim"),
            vocab_size=stored["vocab_size"],
            make_vocab_size_divisible_by=1,
            seq_length=min(2048, _longest(stored)),
            rotary_base=_rotary_base(stored, path),
            norm_epsilon=stored.get("rms_norm_eps", 1e-6),
            untie_embeddings_and_output_weights=not stored.get("tie_word_embeddings", False),
            init_method_std=stored.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing; the configuration is incomplete") from None
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", *SENTENCEPIECE_NAMES))
    return RunConfig(model=model, data=DataConfig(tokenizer=str(folder) if has_tokenizer else None))


def _longest(stored: dict[str, Any]) -> int:
    """Positions up to which the model is our Llama: what it was made for, or its sliding window if that is less."""
    return min(stored.get("max_position_embeddings") or 2048, stored.get("sliding_window") or 1 << 30)


def _rotary_base(stored: dict[str, Any], path: Path) -> float:
    """RoPE's base from either way of storing it (transformers 5 and before); scaled variants are refused."""
    rope = stored.get("rope_parameters") or stored.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rope_type {kind!r} is not supported yet, only plain RoPE")
    return float(rope.get("rope_theta", stored.get("rope_theta", 10000.0)))
