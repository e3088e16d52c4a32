"""Run folders and shards as training leaves them, made in a moment, and requests to analyse them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from megasink.analysis.analyze import analyze
from megasink.analysis.request import AnalysisRequest
from megasink.checkpoint.weights import SINGLE_FILE, gather_weights
from megasink.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from megasink.config.cli import to_yaml
from megasink.data import IndexedDatasetWriter
from megasink.errors import UserError
from megasink.model.llama import Llama
from megasink.parallel.layout import ParallelLayout

SEED = 3


def trained(config: ModelConfig, seed: int = 5) -> Llama:
    """A model whose weights are not the initial ones: norms and theta differ from 1 and 0 too."""
    model = Llama(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write_checkpoint(folder: Path, model: Llama, step: int, data_path: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    config = model.config
    save_file(gather_weights(model, config, ParallelLayout()), folder / SINGLE_FILE, metadata={"format": "pt"})
    run = RunConfig(model=config, training=TrainingConfig(seed=SEED), data=DataConfig(data_path=data_path))
    (folder / "config.yaml").write_text(to_yaml(run))
    (folder / "state.json").write_text(json.dumps({"step": step, "consumed_samples": 8 * step}))
    return folder


def write_run(folder: Path, config: ModelConfig, data_path: tuple[str, ...] = (), keep_untrained: bool = True) -> Path:
    """A run folder with a checkpoint at step 20, and step 0 if wanted."""
    if keep_untrained:
        write_checkpoint(folder / "checkpoints" / "step_00000000", Llama(config, seed=SEED), 0, data_path)
    write_checkpoint(folder / "checkpoints" / "step_00000020", trained(config), 20, data_path)
    return folder


def write_shards(prefix: Path, vocab_size: int, documents: int = 100, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for _ in range(documents):
            writer.add_document(rng.integers(vocab_size, size=rng.integers(5, 60)))
    return str(prefix)


def request_for(made: Path, *checkpoints: Path, **changes) -> AnalysisRequest:
    options = dict(data=str(made / "text"), tokens="200", out=str(made / "report"), device="cpu")
    return AnalysisRequest(tuple(str(path) for path in checkpoints), **(options | changes))


def error_of(request: AnalysisRequest) -> str:
    with pytest.raises(UserError) as error:
        analyze(request, "")
    return str(error.value)
