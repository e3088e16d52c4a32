"""Combinations that cannot work, refused before anything starts: each in one line that names the flag and the fix."""

from dataclasses import fields

from megasink.config.ranges import check_ranges
from megasink.config.run import ModelConfig, OptimizerConfig, ParallelConfig, RunConfig, SinkStatsConfig, TrainingConfig
from megasink.config.support import refusal
from megasink.errors import UserError

_MOST_PARAMETERS = 10**14
"""Of a model; training one holds 16 bytes a parameter, 1.6 PB."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Check everything that does not need the data. Raises UserError at the first fault."""
    check_settings(config)
    _check_layout(config.model, config.parallel, world_size)
    refused = refusal(config)
    _require(refused is None, refused or "")
    _check_batch(config.training, config.parallel, world_size)
    _check_fp8(config)
    _check_cuda_graph(config)
    _require(
        config.checkpoint.keep_every == 0 or config.checkpoint.keep_last > 0,
        f"--keep-every {config.checkpoint.keep_every} adds to --keep-last N, which is not set: all are kept; give both",
    )
    _require(config.checkpoint.save is not None, "--save: name the run folder, for example --save runs/first")
    _require(
        not (
            config.checkpoint.load
            and config.checkpoint.auto_resume
            and config.checkpoint.load == config.checkpoint.save
        ),
        "--load takes the weights of another run; to go on with this one give --auto-resume alone",
    )


def check_settings(config: RunConfig) -> None:
    """What depends neither on the data nor on how many ranks there are."""
    check_ranges(*(getattr(config, section.name) for section in fields(RunConfig)))
    check_model(config.model)
    _check_schedule(config.optimizer, config.training)
    _check_statistics(config.sink_stats, config.model)


def check_model(model: ModelConfig) -> None:
    """Shapes of the model that contradict each other, or that no machine holds."""
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    _require(
        model.head_dim is not None or model.hidden_size % heads == 0,
        f"--hidden-size {model.hidden_size} is not a multiple of --num-attention-heads {heads}; change one or give "
        "--head-dim",
    )
    _require(model.kv_channels % 2 == 0, f"--head-dim {model.kv_channels} is odd; rotary embedding needs an even one")
    _require(
        heads % groups == 0,
        f"--num-attention-heads {heads} is not a multiple of --num-query-groups {groups}; change one",
    )
    _require(
        model.rotary_scaling_factor is None
        or model.rotary_scaling_low_freq_factor < model.rotary_scaling_high_freq_factor,
        f"--rotary-scaling-low-freq-factor {model.rotary_scaling_low_freq_factor} must be less than "
        f"--rotary-scaling-high-freq-factor {model.rotary_scaling_high_freq_factor}",
    )
    rows = model.padded_vocab_size if model.vocab_size is not None else 0
    width = 2 * model.kv_channels * (heads + groups) + 3 * model.ffn_hidden_size
    matrices = model.hidden_size * (model.num_layers * width + rows)
    _require(
        matrices <= _MOST_PARAMETERS,
        f"--num-layers {model.num_layers}, --hidden-size {model.hidden_size}, --ffn-hidden-size "
        f"{model.ffn_hidden_size}, {heads} heads of {model.kv_channels} and --vocab-size {model.vocab_size} make "
        f"{matrices:.1e} parameters, more than any machine holds; one of them is too large",
    )


def _check_layout(model: ModelConfig, parallel: ParallelConfig, world_size: int) -> None:
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    context = parallel.context_parallel_size
    tp, cp = f"--tensor-model-parallel-size {tensor}", f"--context-parallel-size {context}"
    of_context = f" x {cp}" if context > 1 else ""
    _require(
        world_size % (tensor * pipeline * context) == 0,
        f"{world_size} ranks were started, which is no multiple of {tp} x --pipeline-model-parallel-size {pipeline}"
        f"{of_context}; start {tensor * pipeline * context} or a multiple, or change the sizes",
    )
    _require(heads % tensor == 0, f"{tp} does not divide --num-attention-heads {heads}; choose a divisor")
    _require(
        groups % tensor == 0 or tensor % groups == 0,
        f"{tp} and --num-query-groups {groups}: one must divide the other; change one",
    )
    _require(
        model.ffn_hidden_size % tensor == 0,
        f"{tp} does not divide --ffn-hidden-size {model.ffn_hidden_size}; choose a divisor",
    )
    _require(
        model.make_vocab_size_divisible_by % tensor == 0,
        f"{tp} does not divide --make-vocab-size-divisible-by {model.make_vocab_size_divisible_by}; choose a multiple",
    )
    _require(
        not parallel.sequence_parallel or tensor > 1,
        "--sequence-parallel shards over tensor-parallel ranks; it needs --tensor-model-parallel-size 2 or more",
    )
    _require(
        not parallel.sequence_parallel or model.seq_length % tensor == 0,
        f"--sequence-parallel: {tp} does not divide --seq-length {model.seq_length}; choose a divisor",
    )
    _require(0 <= parallel.zero_stage <= 3, f"--zero-stage {parallel.zero_stage} does not exist; choose 0, 1, 2 or 3")
    _require(
        pipeline <= model.num_layers,
        f"--pipeline-model-parallel-size {pipeline} exceeds --num-layers {model.num_layers}; use fewer stages",
    )
    if parallel.pipeline_split is not None:
        _check_split(model, parallel)
    local_heads, local_groups = heads // tensor, max(1, groups // tensor)
    _require(
        local_heads % context == 0,
        f"{cp} does not divide the {local_heads} query heads of each tensor-parallel rank; choose a divisor",
    )
    _require(
        local_groups % context == 0 or context % local_groups == 0,
        f"{cp} and the {local_groups} key-value heads of each tensor-parallel rank: one must divide the other; change "
        "--context-parallel-size",
    )
    parts = context * (tensor if parallel.sequence_parallel else 1)
    _require(
        model.seq_length % parts == 0,
        f"{cp}: --seq-length {model.seq_length} cannot be cut into {parts} equal parts; choose a multiple of {parts}",
    )


def _check_split(model: ModelConfig, parallel: ParallelConfig) -> None:
    split, stages = parallel.pipeline_split, parallel.pipeline_model_parallel_size
    try:
        blocks = parallel.split_blocks()
    except ValueError:
        blocks = []
    _require(
        len(blocks) == stages and min(blocks, default=0) >= 1 and sum(blocks) == model.num_layers,
        f"--pipeline-split {split}: give {stages} numbers of at least 1, one per stage, that sum to --num-layers "
        f"{model.num_layers}",
    )


def _check_batch(training: TrainingConfig, parallel: ParallelConfig, world_size: int) -> None:
    ranks_per_model = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    data = world_size // (ranks_per_model * parallel.context_parallel_size)
    per_pass = training.micro_batch_size * data
    _require(
        training.global_batch_size % per_pass == 0,
        f"--global-batch-size {training.global_batch_size} is not a multiple of --micro-batch-size "
        f"{training.micro_batch_size} x {data} data-parallel ranks; use a multiple of {per_pass}",
    )


def _check_fp8(config: RunConfig) -> None:
    model, parallel, training = config.model, config.parallel, config.training
    if training.fp8 == "off":
        return
    _require(
        training.precision == "bf16",
        f"--fp8 {training.fp8} multiplies what bf16 training holds; give --precision bf16, or --fp8 off",
    )
    ranks = parallel.tensor_model_parallel_size
    sizes = {
        f"--hidden-size {model.hidden_size}": model.hidden_size,
        f"--ffn-hidden-size {model.ffn_hidden_size} over {ranks} ranks": model.ffn_hidden_size // ranks,
        f"query heads x --head-dim over {ranks} ranks": model.num_attention_heads // ranks * model.kv_channels,
        f"key-value heads x --head-dim over {ranks} ranks": max(1, model.num_key_value_heads // ranks)
        * model.kv_channels,
        f"--micro-batch-size {training.micro_batch_size} x --seq-length {model.seq_length} over "
        f"{parallel.context_parallel_size} ranks": training.micro_batch_size
        * (model.seq_length // parallel.context_parallel_size),
    }
    for name, size in sizes.items():
        _require(
            size % 16 == 0,
            f"--fp8 {training.fp8}: {name} is {size}, no multiple of 16 as its products need; change it, or --fp8 off",
        )


def _check_cuda_graph(config: RunConfig) -> None:
    model, parallel, training = config.model, config.parallel, config.training
    if not training.cuda_graph:
        return
    ranks = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    _require(
        ranks == 1,
        f"--cuda-graph launches what one GPU does by itself, here {ranks} ranks share a micro-batch; leave it out",
    )
    _require(
        training.precision == "bf16" and parallel.zero_stage == 1,
        f"--cuda-graph works with --precision bf16 --zero-stage 1, not with {training.precision} and ZeRO-"
        f"{parallel.zero_stage}; leave it out",
    )
    _require(
        not model.reset_position_ids and not model.reset_attention_mask,
        "--cuda-graph launches the same for every micro-batch, and --reset-position-ids and --reset-attention-mask "
        "depend on its documents; leave it out",
    )


def _check_schedule(optimizer: OptimizerConfig, training: TrainingConfig) -> None:
    _require(optimizer.min_lr <= optimizer.lr, f"--min-lr {optimizer.min_lr} exceeds --lr {optimizer.lr}; lower it")
    decay = optimizer.lr_wsd_decay_iters if optimizer.lr_decay_style == "WSD" else 0
    _require(
        optimizer.lr_warmup_iters + decay <= training.train_iters,
        f"--lr-warmup-iters {optimizer.lr_warmup_iters} and the decay of {decay} exceed --train-iters "
        f"{training.train_iters}; shorten them",
    )


def _check_statistics(sink_stats: SinkStatsConfig, model: ModelConfig) -> None:
    _require(
        sink_stats.level_at(0) is None or model.seq_length >= 16,
        f"--sink-stats compares token 0 with positions 1..15; --seq-length {model.seq_length} is too short; "
        "give --sink-stats off",
    )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(otherwise)
