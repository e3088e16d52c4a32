"""Parameters and floating-point operations of a model."""

from megasink.config import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """Exact count of the whole model, vocabulary unpadded."""
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.kv_channels
    attention = config.hidden_size * width * (2 * heads + 2 * groups) + (groups if config.v_scale == "on" else 0)
    mlp = 3 * config.hidden_size * config.ffn_hidden_size
    embeddings = config.hidden_size * config.vocab_size * (2 if config.untie_embeddings_and_output_weights else 1)
    return embeddings + config.num_layers * (attention + mlp + 2 * config.hidden_size) + config.hidden_size


def flops_per_token(config: ModelConfig) -> float:
    """6 per weight that multiplies (embedding look-up not counted) + 6 L N D T of attention, the causal half."""
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.kv_channels
    attention = config.hidden_size * width * (2 * heads + 2 * groups)
    mlp = 3 * config.hidden_size * config.ffn_hidden_size
    weights = config.num_layers * (attention + mlp) + config.hidden_size * config.vocab_size
    return 6.0 * weights + 6.0 * config.num_layers * heads * width * config.seq_length
