"""Configuration: typed dataclasses, and the flags, YAML and checks made from them."""

from megasink.config.run import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SinkStatsConfig,
    TrainCommand,
    TrainingConfig,
)

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RunConfig",
    "SinkStatsConfig",
    "TrainCommand",
    "TrainingConfig",
]
