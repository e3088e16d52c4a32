"""A run goes on as the model it was: files that hold another one are not damaged, and some of them would even load."""

from pathlib import Path

from megasink.config import ModelConfig, RunConfig
from megasink.config.cli import load_yaml
from megasink.errors import UserError

_FLAGS = {
    "num_layers": "--num-layers",
    "hidden_size": "--hidden-size",
    "ffn_hidden_size": "--ffn-hidden-size",
    "num_attention_heads": "--num-attention-heads",
    "num_key_value_heads": "--num-query-groups",
    "kv_channels": "--head-dim",
    "vocab_size": "--vocab-size",
    "padded_vocab_size": "a vocabulary, padded (--make-vocab-size-divisible-by), of",
    "untie_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
    "v_scale": "--v-scale",
}


def check_same_model(checkpoint: Path, model: ModelConfig) -> None:
    """Raises UserError where the checkpoint's model has other parameters, or another V-scale, than `model`."""
    try:
        saved = load_yaml(RunConfig, checkpoint / "config.yaml").model
    except UserError:
        return  # of a version with other settings; DeepSpeed compares shapes too, in its own words
    for name, flag in _FLAGS.items():
        theirs, ours = getattr(saved, name), getattr(model, name)
        if theirs != ours:
            raise UserError(
                f"{checkpoint} is of a model with {flag} {theirs}, not {ours}; go on with that, or name another --save"
            )
