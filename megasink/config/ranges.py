"""What each setting may be, whatever the others are."""

import math
from collections.abc import Callable

from megasink.errors import UserError

_MOST_LAYERS = 100_000  # a module for each, however narrow they are
_YEAR_IN_MINS = 525_600  # timers of C libraries take no infinity

_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("at least 1", lambda value: value >= 1, """
        num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups head_dim seq_length vocab_size
        make_vocab_size_divisible_by rotary_scaling_original_length tensor_model_parallel_size
        pipeline_model_parallel_size context_parallel_size train_iters micro_batch_size global_batch_size log_interval
        eval_iters max_skipped_steps"""),
    ("more than 0", lambda value: value > 0, """
        rotary_base rotary_scaling_factor rotary_scaling_low_freq_factor rotary_scaling_high_freq_factor
        init_method_std embedding_init_method_std adam_eps distributed_timeout_in_mins"""),
    ("0 or more", lambda value: value >= 0, """
        norm_epsilon lr min_lr lr_warmup_iters lr_wsd_decay_iters weight_decay clip_grad save_interval keep_last
        keep_every step_timeout_in_mins exit_duration_in_mins eval_interval sink_stats_interval
        sink_stats_full_interval check_replicas profile"""),
    ("0 or more and less than 1", lambda value: 0 <= value < 1, "adam_beta1 adam_beta2"),
    (f"at most {_MOST_LAYERS}", lambda value: value <= _MOST_LAYERS, "num_layers"),
    (f"at most {_YEAR_IN_MINS}, a year", lambda value: value <= _YEAR_IN_MINS, """
        step_timeout_in_mins distributed_timeout_in_mins"""),
)  # fmt: skip


def check_ranges(*sections: object) -> None:
    """Raises UserError at the first setting of these dataclasses that is empty, not finite or out of its range."""
    values = {name: value for section in sections for name, value in vars(section).items()}
    for name, value in values.items():
        if value == "":
            raise UserError(f"{_flag(name)} is empty; give a value, or leave the flag out")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{_flag(name)} {value}: must be a finite number")
    for must, holds, names in _RANGES:
        for name in names.split():
            value = values.get(name)
            if value is not None and not holds(value):
                raise UserError(f"{_flag(name)} {value}: must be {must}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
