"""A checkpoint as a transformers model in memory, for prompting it with a KV cache."""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from megasink.checkpoint.convert import find_checkpoint, read_checkpoint_config, read_weights
from megasink.checkpoint.hugging_face_config import CONFIG_FILE, read_model_config, write_model_config
from megasink.checkpoint.modeling_megasink import MegasinkLlamaConfig, MegasinkLlamaForCausalLM
from megasink.config import ModelConfig


def load_for_generation(path: Path) -> tuple[PreTrainedModel, str | None]:
    """The model of a run, a checkpoint or a Hugging Face folder in fp32, and the tokenizer that belongs to it.

    Raises:
        UserError: no such folder, or weights that do not fit.
    """
    if (path / CONFIG_FILE).is_file():
        return _build(read_model_config(path), path), str(path)
    checkpoint = find_checkpoint(path)
    run = read_checkpoint_config(checkpoint)
    return _build(run.model, checkpoint), run.data.tokenizer


def _build(config: ModelConfig, folder: Path) -> PreTrainedModel:
    weights = read_weights(folder, config, "float32")
    content = write_model_config(config, "float32", {})
    if config.v_scale == "on":
        model = MegasinkLlamaForCausalLM(MegasinkLlamaConfig(**content))
    else:
        model = LlamaForCausalLM(LlamaConfig(**content))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()
