"""Configurations of many shapes and layouts, for counts."""

from megasink.config import RunConfig
from megasink.config.cli import from_dict

MODELS = {
    "plain": {},
    "gqa_v_scale": {"num_query_groups": 4, "v_scale": "on"},
    "one_kv_head_tied": {"num_query_groups": 1, "v_scale": "on", "untie_embeddings_and_output_weights": False},
    "wide_heads_tied": {"head_dim": 48, "untie_embeddings_and_output_weights": False},
}
LAYOUTS = {
    "one": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp8_sp": {"tensor_model_parallel_size": 8, "sequence_parallel": True},
    "pp3": {"pipeline_model_parallel_size": 3},
    "tp4_pp2_split": {
        "tensor_model_parallel_size": 4,
        "pipeline_model_parallel_size": 2,
        "pipeline_split": "4,3",
    },
    "tp2_cp2": {"tensor_model_parallel_size": 2, "context_parallel_size": 2, "recompute": "full"},
}


def run_of(model: str, layout: str, **training) -> RunConfig:
    sections = {
        "model": {
            "num_layers": 7,
            "hidden_size": 256,
            "ffn_hidden_size": 704,
            "num_attention_heads": 16,
            "vocab_size": 1000,
            "seq_length": 64,
        }
        | MODELS[model],
        "parallel": LAYOUTS[layout],
        "training": {"micro_batch_size": 2, "global_batch_size": 2} | training,
    }
    return from_dict(RunConfig, sections, "test")
