"""Models of transformers built like a Llama: residual blocks, causal attention by SDPA, one norm per branch."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from megasink.analysis.subject import TransformersSubject
from megasink.checkpoint.hugging_face_config import CONFIG_FILE
from megasink.config import ModelConfig
from megasink.errors import UserError
from megasink.stats.attach import BlockNames

_LLAMA_SHAPED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_GPT2 = "gpt2"
FAMILIES = (*_LLAMA_SHAPED, _GPT2)
_GPT2_NAMES = BlockNames(
    attention_norm="ln_1",
    attention="attn",
    query="attn.c_attn.query",
    key="attn.c_attn.key",
    value="attn.c_attn.value",
    mlp_norm="ln_2",
    mlp="mlp",
)
_NULL_SEED = 0


def family_of(folder: Path) -> str | None:
    """The `model_type` of a Hugging Face folder, None where config.json does not say."""
    try:
        stored = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored.get("model_type") if isinstance(stored, dict) else None


def read_shape(folder: Path) -> ModelConfig:
    """The shape of a model of FAMILIES; `seq_length` becomes 2048 or what it was made for if that is less.

    Raises:
        UserError: a configuration that transformers cannot read, or an attention that is not plain and causal.
    """
    config = _read_config(folder)
    if config.model_type == _GPT2:
        if config.scale_attn_by_inverse_layer_idx or config.add_cross_attention or not config.scale_attn_weights:
            raise UserError(f"{folder}: a GPT-2 with an attention of its own kind; only the plain one can be analysed")
        heads, ffn, epsilon = config.n_head, config.n_inner or 4 * config.n_embd, config.layer_norm_epsilon
    else:
        heads, ffn, epsilon = config.num_key_value_heads, config.intermediate_size, config.rms_norm_eps
    return ModelConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=ffn,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        make_vocab_size_divisible_by=1,
        seq_length=min(2048, config.max_position_embeddings),
        norm_epsilon=epsilon,
        init_method_std=config.initializer_range,
        untie_embeddings_and_output_weights=not config.tie_word_embeddings,
    )


def check_length(folder: Path, length: int) -> None:
    """Raise UserError where sequences of `length` tokens would not see each other whole, or have no position."""
    config = _read_config(folder)
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and length > window:
        raise UserError(f"{folder}: its attention sees {window} tokens back; give --seq-length {window} or less")
    if config.model_type == _GPT2 and length > config.n_positions:
        raise UserError(f"{folder}: has {config.n_positions} positions; give --seq-length {config.n_positions} or less")


def load_transformers(folder: Path, shape: ModelConfig, device: torch.device) -> TransformersSubject:
    """The whole model in fp32 with the folder's weights; safetensors only, no code of the folder is run.

    Raises:
        UserError: weights that are damaged, missing, left over or of another shape.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # the analysis has one of its own
    options = dict(dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, local_files_only=True)
    options["ignore_mismatched_sizes"] = True  # said below, in one line
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # transformers raises whatever the reason; all mean that these weights are of no use
        raise UserError(f"{folder}: transformers cannot load it ({_first_line(error)})") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading.get(problem):
            name = sorted(str(key) for key in loading[problem])[0]
            raise UserError(f"{folder}: {problem.replace('_', ' ')}, {name} for one; the folder is damaged")
    return subject_of(model.to(device), shape)


def untrained_transformers(folder: Path, shape: ModelConfig, device: torch.device) -> TransformersSubject:
    """The same model with the weights that transformers draws for it, from a fixed seed."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_NULL_SEED)
        model = AutoModelForCausalLM.from_config(_read_config(folder), attn_implementation="sdpa", dtype=torch.float32)
    return subject_of(model.to(device), shape)


def empty_transformers(folder: Path, shape: ModelConfig, device: torch.device) -> TransformersSubject:
    """The same model without weights (on the meta device), but for what RoPE is made of."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_read_config(folder), attn_implementation="sdpa", dtype=torch.float32)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    return subject_of(model, shape)


def subject_of(model: nn.Module, shape: ModelConfig) -> TransformersSubject:
    """A loaded model of FAMILIES as the subject of an analysis."""
    model = model.eval().requires_grad_(False)
    if model.config.model_type != _GPT2:
        return TransformersSubject(model, shape, list(model.model.layers), BlockNames())
    blocks = list(model.transformer.h)
    for block in blocks:
        block.attn.c_attn = _SplitProjection(block.attn.c_attn)
    return TransformersSubject(model, shape, blocks, _GPT2_NAMES)


class _SplitProjection(nn.Module):
    """GPT-2's one projection as three, so that each has its own input and output."""

    def __init__(self, fused: nn.Module):
        super().__init__()
        weights, biases = fused.weight.t().chunk(3), fused.bias.chunk(3)
        self.query, self.key, self.value = (_linear(*pair) for pair in zip(weights, biases, strict=True))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.cat([part(hidden_states) for part in (self.query, self.key, self.value)], dim=-1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = (nn.Parameter(part.contiguous(), requires_grad=False) for part in (weight, bias))
    return linear


def _read_config(folder: Path):
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # what its warnings are about is refused here or does not matter to an analysis
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder / CONFIG_FILE}: transformers cannot read it ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:200]
