"""The typed configuration of a training run: the only source of flags, YAML keys and defaults.

Field names are flag names (`num_layers` is `--num-layers`), in Megatron's spelling where Megatron has the setting, and
unique over all sections.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from pydantic import ConfigDict

_STRICT_KEYS = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # data_path: [0.7, a, 0.3, b]


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


@dataclass
class ModelConfig:
    """Shape and numerics of the Llama."""

    __pydantic_config__ = _STRICT_KEYS

    num_layers: int = 16
    """Transformer blocks."""
    hidden_size: int = 2048
    """Width of the residual stream."""
    ffn_hidden_size: int = 8192
    """Width of the SwiGLU MLP."""
    num_attention_heads: int = 16
    """Query heads."""
    num_query_groups: int | None = None
    """Key-value heads (GQA); default: as many as query heads."""
    head_dim: int | None = None
    """Width of one head; default: --hidden-size / --num-attention-heads."""
    vocab_size: int | None = None
    """Vocabulary entries; default: what the data was tokenized with."""
    make_vocab_size_divisible_by: int = 128
    """The embedding is padded to a multiple of this, whatever the layout; padding never enters the loss."""
    seq_length: int = 2048
    """Tokens per sample."""
    rotary_base: float = 10000.0
    """Base of the rotary position embedding."""
    rotary_scaling_factor: float | None = None
    """Llama 3's stretching of long rotary wavelengths by this factor; default: none."""
    rotary_scaling_low_freq_factor: float = 1.0
    """Llama 3 scaling: wavelengths above --rotary-scaling-original-length / this are stretched fully."""
    rotary_scaling_high_freq_factor: float = 4.0
    """Llama 3 scaling: wavelengths below --rotary-scaling-original-length / this are left alone."""
    rotary_scaling_original_length: int = 8192
    """Llama 3 scaling: context length before stretching."""
    reset_attention_mask: bool = False
    """Packed documents do not attend to each other."""
    reset_position_ids: bool = False
    """Positions count from each packed document's first token."""
    norm_epsilon: float = 1e-5
    """Epsilon of RMSNorm."""
    untie_embeddings_and_output_weights: bool = True
    """Separate input embedding and output weights."""
    init_method_std: float = 0.02
    """Standard deviation of every weight matrix at initialisation; V-scale's C_0 follows from it."""
    embedding_init_method_std: float | None = None
    """Standard deviation of the input embedding (and of an output layer tied to it); default: --init-method-std."""
    v_scale: Literal["off", "on", "backward-only"] = "off"
    """V-scale in attention (docs/sink-stats.md); backward-only: a control that changes gradients alone."""

    @property
    def num_key_value_heads(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def kv_channels(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        multiple = self.make_vocab_size_divisible_by
        return -(-self.vocab_size // multiple) * multiple


@dataclass
class ParallelConfig:
    """How the model is laid out over ranks."""

    __pydantic_config__ = _STRICT_KEYS

    tensor_model_parallel_size: int = 1
    """Ranks that share each layer's heads, FFN columns and vocabulary."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages."""
    pipeline_split: str | None = None
    """Transformer blocks of each stage, for example 5,6,5; default: balanced by parameters."""
    context_parallel_size: int = 1
    """Ranks that share each sequence."""
    sequence_parallel: bool = False
    """Shard norms and the residual stream along the sequence over the tensor-parallel ranks."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage (0-3)."""
    deepspeed_config: str | None = None
    """JSON file of DeepSpeed settings; default: ds_configs/zero<stage>.json of the repository."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: cheap ones (selective) or whole blocks (full)."""
    check_replicas: int = 0
    """Every this many steps compare the parameters that several ranks hold, and stop on a difference; 0: never."""

    def split_blocks(self) -> list[int]:
        """--pipeline-split as numbers. Raises ValueError if they are none."""
        return [int(part) for part in self.pipeline_split.split(",")]


@dataclass
class OptimizerConfig:
    """AdamW and the learning-rate schedule."""

    __pydantic_config__ = _STRICT_KEYS

    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 3e-5
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["cosine", "WSD", "constant"] = "cosine"
    """Shape after warm-up; WSD holds the peak and decays linearly over the last --lr-wsd-decay-iters."""
    lr_warmup_iters: int = 0
    """Length of the linear warm-up, in iterations; the first has --lr / this."""
    lr_wsd_decay_iters: int = 0
    """Length of WSD's final decay, in iterations."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and V-scale's theta have none."""
    adam_beta1: float = 0.9
    """AdamW beta 1."""
    adam_beta2: float = 0.95
    """AdamW beta 2."""
    adam_eps: float = 1e-8
    """AdamW epsilon."""
    clip_grad: float = 1.0
    """Global gradient norm is clipped to this; 0 leaves gradients as they are."""


@dataclass
class TrainingConfig:
    """Length, batch, precision and evaluation of a run."""

    __pydantic_config__ = _STRICT_KEYS

    train_iters: int = 1000
    """Optimizer steps."""
    micro_batch_size: int = 1
    """Samples per forward pass and rank."""
    global_batch_size: int = 8
    """Samples per optimizer step over all ranks."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps fp32 master weights and accumulates gradients in fp32."""
    fp8: Literal["off", "hybrid", "e4m3"] = "off"
    """Products of the blocks' linear layers in fp8 (with bf16): e4m3, gradients in e5m2 (hybrid) or e4m3."""
    seed: int = 1234
    """Seed of initial weights and data order."""
    compile: bool = True
    """Compile each block with torch.compile (on a GPU; ignored on a CPU)."""
    cuda_graph: bool = False
    """Launch a micro-batch as one CUDA graph, where a step waits for the host (one GPU a replica; none on a CPU)."""
    eval_interval: int = 0
    """Evaluate on the validation split every this many steps; 0: never."""
    eval_iters: int = 10
    """Global batches per evaluation."""
    exit_duration_in_mins: float | None = None
    """Save and exit cleanly after this many minutes; default: never."""
    max_skipped_steps: int = 10
    """Steps whose loss or gradients are not finite are skipped; this many in a row end the run."""
    step_timeout_in_mins: float = 20.0
    """A rank that makes no progress for so long reports what all ranks are doing and ends the job; 0: never."""
    distributed_timeout_in_mins: float = 30.0
    """A collective operation that takes longer fails."""

    @property
    def arithmetic(self) -> str:
        """In words, for people."""
        return self.precision if self.fp8 == "off" else f"{self.precision} with fp8 products ({self.fp8})"


@dataclass
class DataConfig:
    """Tokenized shards and the tokenizer they were made with."""

    __pydantic_config__ = _STRICT_KEYS

    data_path: tuple[str, ...] = ()
    """Prefix of .bin/.idx files, or weights and prefixes in turn: 0.7 a 0.3 b."""
    valid_data_path: tuple[str, ...] = ()
    """Shards for evaluation; default: the validation part of --split."""
    split: str = "969,30,1"
    """Relative shares of documents for training, validation and test."""
    tokenizer: str | None = None
    """SentencePiece model or Hugging Face tokenizer of the shards; checked against the vocabulary."""
    bos_first: bool = False
    """Write BOS over the first token of every sample, so that token 0 is the same one everywhere."""
    data_cache_path: str | None = None
    """Folder, shared or local, for the order of documents, so that ranks share it; default: each in its memory."""


@dataclass
class CheckpointConfig:
    """The run folder and what is kept in it."""

    __pydantic_config__ = _STRICT_KEYS

    save: str | None = None
    """Run folder (docs/run-folder.md)."""
    save_interval: int = 1000
    """Write a checkpoint every this many steps (and at the end); 0: only at the end."""
    async_save: bool = True
    """Train on while a checkpoint is written; needs host memory for one rank's part of it."""
    keep_last: int = 0
    """Keep this many newest checkpoints (and step 0); 0: all."""
    keep_every: int = 0
    """Beside those, keep the checkpoints at multiples of this many steps; 0: none."""
    auto_resume: bool = False
    """Go on from the newest checkpoint of the run folder, if it has one."""
    load: str | None = None
    """Start from the weights of this checkpoint with a fresh optimizer."""


@dataclass
class SinkStatsConfig:
    """Live sink statistics (docs/sink-stats.md). Those of step 0, the untrained weights, are the null."""

    __pydantic_config__ = _STRICT_KEYS

    sink_stats: Literal["off", "light", "full"] = "full"
    """light: cheap statistics every --sink-stats-interval; full: also all others every --sink-stats-full-interval."""
    sink_stats_interval: int = 100
    """Take light statistics every this many steps; 0: never."""
    sink_stats_full_interval: int = 1000
    """Take full statistics every this many steps, with --sink-stats full; 0: never."""

    def level_at(self, step: int) -> Literal["light", "full"] | None:
        """What to take in the step after `step` steps."""
        if self.sink_stats == "full" and _due(step, self.sink_stats_full_interval):
            return "full"
        return "light" if self.sink_stats != "off" and _due(step, self.sink_stats_interval) else None

    def levels(self, first: int, end: int) -> list[Literal["light", "full"] | None]:
        """What level_at says of any step from `first` on and before `end`, of a million of them at most."""
        return list(dict.fromkeys(map(self.level_at, range(first, min(end, first + 1_000_000)))))


@dataclass
class LoggingConfig:
    """Console, metrics.jsonl and wandb."""

    __pydantic_config__ = _STRICT_KEYS

    log_interval: int = 10
    """Log every this many steps."""
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if you are logged in, otherwise offline."""
    wandb_project: str = "megasink"
    """wandb project."""
    run_name: str | None = None
    """Name of the run; default: the run folder's name."""
    profile: int = 0
    """Profile this many warm steps on rank 0: a trace and a table of where time goes, in SAVE/profile; 0: none."""
    memory_snapshot: bool = False
    """Record allocations over the profiled steps (3 without --profile), for pytorch.org/memory_viz; needs a GPU."""


@dataclass
class RunConfig:
    """Everything that decides a training run."""

    __pydantic_config__ = _STRICT_KEYS

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sink_stats: SinkStatsConfig = field(default_factory=SinkStatsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass
class TrainCommand(RunConfig):
    """What the training command takes: a run, and whether only to look at it."""

    dry_run: bool = False
    """Check everything but the training, on one machine without GPUs, and end."""
    world_size: int | None = None
    """With --dry-run: as if so many ranks were started; default: those that are, or what the layout needs at least."""

    def run_config(self) -> RunConfig:
        return RunConfig(**{section.name: getattr(self, section.name) for section in fields(RunConfig)})
