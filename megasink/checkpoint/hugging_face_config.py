"""A Llama's `config.json` from and to our configuration, for transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

from megasink.config import ModelConfig
from megasink.config.checks import check_model
from megasink.config.cli import from_dict
from megasink.config.ranges import check_ranges
from megasink.errors import UserError

CONFIG_FILE = "config.json"
_MODEL_TYPES = ("llama", "megasink_llama")
_MUST_BE = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "pretraining_tp": 1}
_SHORTEST_SEQUENCE = 2048


def read_model_config(folder: Path) -> ModelConfig:
    """The model of a Hugging Face folder. `seq_length`, a choice of training, becomes 2048 or less.

    Raises:
        UserError: no readable config.json, or a model that is not a Llama of this package.
    """
    path = folder / CONFIG_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder}: no {CONFIG_FILE}; give a Hugging Face model folder") from None
    except ValueError:
        raise UserError(f"{path}: not JSON; the folder is damaged") from None
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    if kind not in _MODEL_TYPES:
        raise UserError(f"{path}: model_type {kind!r}; only Llamas can be converted ({', '.join(_MODEL_TYPES)})")
    for name, wanted in _MUST_BE.items():
        if stored.get(name, wanted) != wanted:
            raise UserError(f"{path}: {name} is {stored[name]!r}; only {wanted!r} can be converted")
    try:
        found = {
            "num_layers": stored["num_hidden_layers"],
            "hidden_size": stored["hidden_size"],
            "ffn_hidden_size": stored["intermediate_size"],
            "num_attention_heads": stored["num_attention_heads"],
            "num_query_groups": stored.get("num_key_value_heads"),
            "head_dim": stored.get("head_dim"),
            "vocab_size": stored["vocab_size"],
            "seq_length": stored.get("max_position_embeddings") or _SHORTEST_SEQUENCE,
            "norm_epsilon": stored.get("rms_norm_eps", 1e-6),
            "untie_embeddings_and_output_weights": not stored.get("tie_word_embeddings", False),
            "init_method_std": stored.get("initializer_range", 0.02),
            "v_scale": "on" if kind == "megasink_llama" else "off",
            **_read_rope(stored, path),
        }
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing; the folder is damaged") from None
    if found["vocab_size"] is None:  # of ours it may be
        raise UserError(f"{path}: vocab_size is null; the folder is damaged")
    config = from_dict(ModelConfig, found, str(path))
    config.seq_length = min(_SHORTEST_SEQUENCE, config.seq_length)
    try:
        check_ranges(config)
        check_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if kind == "megasink_llama":
        _check_initial_c(stored, config, path)
    return config


def write_model_config(config: ModelConfig, dtype: str, special_tokens: dict[str, int | None]) -> dict[str, Any]:
    """The content of config.json: a plain Llama's unless V-scale acts in the forward pass.

    Args:
        dtype: of the weights, "float32" or "bfloat16".
        special_tokens: bos_token_id and eos_token_id.

    Raises:
        UserError: a shape that transformers' Llama refuses.
    """
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"hidden size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads, which "
            "transformers' LlamaConfig asks for even where head_dim is given; such a model cannot be exported"
        )
    scaling = None
    if config.rotary_scaling_factor is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": config.rotary_scaling_factor,
            "low_freq_factor": config.rotary_scaling_low_freq_factor,
            "high_freq_factor": config.rotary_scaling_high_freq_factor,
            "original_max_position_embeddings": config.rotary_scaling_original_length,
        }
    content = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_length,
        "initializer_range": config.init_method_std,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
        "attention_bias": False,
        "mlp_bias": False,
        # transformers 5 reads rope_parameters, 4 the other two
        "rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": config.rotary_base},
        "rope_theta": config.rotary_base,
        "rope_scaling": None if scaling is None else scaling | {"rope_theta": config.rotary_base},
        "torch_dtype": dtype,
        "use_cache": True,
        **special_tokens,
    }
    if config.v_scale == "on":
        content |= {
            "architectures": ["MegasinkLlamaForCausalLM"],
            "model_type": "megasink_llama",
            "auto_map": {
                "AutoConfig": "modeling_megasink.MegasinkLlamaConfig",
                "AutoModelForCausalLM": "modeling_megasink.MegasinkLlamaForCausalLM",
            },
            "v_scale_initial_c": initial_c(config),
        }
    return content


def initial_c(config: ModelConfig) -> float:
    """C_0 of V-scale (arXiv 2603.17771)."""
    return config.hidden_size * config.kv_channels * config.init_method_std**2


def _read_rope(stored: dict, path: Path) -> dict[str, Any]:
    """Fields of ModelConfig. Raises KeyError at what is missing."""
    rope = stored.get("rope_parameters") or stored.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters is {rope!r}; only an object or null can be read")
    plain = {"rotary_base": rope.get("rope_theta", stored.get("rope_theta", 10000.0))}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return plain
    if kind != "llama3":
        raise UserError(f"{path}: rope_type {kind!r}; only plain RoPE and Llama 3's scaling can be converted")
    return plain | {
        "rotary_scaling_factor": rope["factor"],
        "rotary_scaling_low_freq_factor": rope["low_freq_factor"],
        "rotary_scaling_high_freq_factor": rope["high_freq_factor"],
        "rotary_scaling_original_length": rope["original_max_position_embeddings"],
    }


def _check_initial_c(stored: dict, config: ModelConfig, path: Path) -> None:
    found, expected = stored.get("v_scale_initial_c"), initial_c(config)
    if not isinstance(found, (int, float)) or abs(found - expected) > 1e-9 * expected:
        raise UserError(f"{path}: v_scale_initial_c {found} does not follow from the shape and initializer_range")
