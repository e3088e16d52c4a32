"""The DeepSpeed JSON of a run: settings of a file in ds_configs/, plus what the run's configuration decides."""

import json
from pathlib import Path

from megasink.config.run import RunConfig
from megasink.errors import UserError

DECIDED_BY_RUN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "data_types",
    "pipeline",
)


def deepspeed_config(config: RunConfig, replicas: int) -> dict:
    """Read the file and fill in batch sizes, precision and clipping.

    Args:
        replicas: data x context parallel ranks, DeepSpeed's data parallelism.

    Raises:
        UserError: unreadable file, or one that sets what the run's flags decide.
    """
    training, context = config.training, config.parallel.context_parallel_size
    merged = _read(config)
    merged |= {
        # DeepSpeed counts a sequence once for each context-parallel rank that holds a part of it
        "train_batch_size": training.global_batch_size * context,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.global_batch_size * context // (training.micro_batch_size * replicas),
        # without ZeRO megasink.train.clipping does it
        "gradient_clipping": config.optimizer.clip_grad if config.parallel.zero_stage > 0 else 0.0,
        "steps_per_print": None,
        # an optimizer of torch under ZeRO is what we want, not an accident
        "zero_allow_untested_optimizer": True,
        # both assume activations that are equal on all tensor-parallel ranks; under sequence parallelism they are not
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
    if training.precision == "bf16":
        # immediate: a gradient goes into its fp32 sum as soon as it exists, and its bf16 form is freed
        merged |= {
            "bf16": {"enabled": True, "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
        }
    return merged


def _read(config: RunConfig) -> dict:
    stage = config.parallel.zero_stage
    default = Path(__file__).resolve().parents[2] / "ds_configs" / f"zero{stage}.json"
    path = Path(config.parallel.deepspeed_config or default)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--deepspeed-config {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--deepspeed-config {path}: not JSON ({error})") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("zero_optimization", {}), dict):
        raise UserError(f"--deepspeed-config {path}: it and zero_optimization must be JSON objects; see {default}")
    timers = [key for key in ("wall_clock_breakdown", "flops_profiler") if _enabled(settings.get(key))]
    if timers:
        raise UserError(f"{path}: {', '.join(timers)}: --profile says where time goes; remove from the file")
    taken = [key for key in DECIDED_BY_RUN if key in settings]
    if taken:
        raise UserError(f"{path}: {', '.join(taken)}: set by megasink's own flags; remove from the file")
    found = settings.get("zero_optimization", {}).get("stage", 0)
    if found != stage:
        raise UserError(f"{path}: sets ZeRO stage {found}, the run asks for --zero-stage {stage}; make them agree")
    return settings


def _enabled(setting: object) -> bool:
    return bool(setting.get("enabled", False) if isinstance(setting, dict) else setting)
