"""Train a tiny Llama for some steps with the real engine under any layout, for comparison with one process."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import torch

from megasink.checkpoint.weights import gather_weights
from megasink.config import ModelConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from megasink.model.llama import Embedding
from megasink.parallel.layout import ParallelLayout, build_layout
from megasink.train.distributed import start_distributed
from megasink.train.engine import MicroBatch, TrainEngine
from tests.helpers.tiny import tiny_config

GLOBAL_BATCH = 8
STEPS = 10
MODELS = {
    "v_scale_gqa": {"v_scale": "on"},
    "v_scale_tied": {"v_scale": "on", "untie_embeddings_and_output_weights": False},
    "one_key_value_head_tied": {
        "v_scale": "on",
        "num_query_groups": 1,
        "untie_embeddings_and_output_weights": False,
    },
    "plain_mha": {"num_query_groups": None},
    "documents": {"v_scale": "on", "reset_attention_mask": True, "reset_position_ids": True},
}


ZERO3_SPLIT = Path(__file__).with_name("zero3_split.json")
"""ZeRO-3 that splits weights of any size, as it does those of real models; with ds_configs/zero3.json a tiny model's
stay whole."""


@dataclass(frozen=True)
class Case:
    """A layout over as many ranks as there are, the model it trains, and how."""

    model: str
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    sequence_parallel: bool = False
    zero: int = 1
    recompute: str = "none"
    split: str | None = None
    micro_batch: int = 2
    precision: str = "fp32"
    fp8: str = "off"
    clip: float = 1.0

    def on(self, model: str, **changes) -> "Case":
        return replace(self, model=model, **changes)

    def __str__(self) -> str:
        changed = {name: value for name, value in vars(self).items() if value != getattr(Case, name, None)}
        return " ".join(f"{name}={value}" for name, value in changed.items())


def run_config(case: Case) -> RunConfig:
    parallel = ParallelConfig(
        tensor_model_parallel_size=case.tensor,
        pipeline_model_parallel_size=case.pipeline,
        context_parallel_size=case.context,
        sequence_parallel=case.sequence_parallel,
        zero_stage=case.zero,
        deepspeed_config=str(ZERO3_SPLIT) if case.zero == 3 else None,
        recompute=case.recompute,
        pipeline_split=case.split,
    )
    training = TrainingConfig(
        train_iters=STEPS,
        micro_batch_size=case.micro_batch,
        global_batch_size=GLOBAL_BATCH,
        precision=case.precision,
        fp8=case.fp8,
    )
    optimizer = OptimizerConfig(lr=1e-3, min_lr=1e-3, adam_eps=1e-6, clip_grad=case.clip)
    return RunConfig(model_of(case.model), parallel, optimizer, training)


def model_of(name: str) -> ModelConfig:
    return tiny_config(num_layers=4, init_method_std=0.1, **MODELS[name])


def layout_of(case: Case) -> ParallelLayout:
    return build_layout(case.tensor, case.pipeline, case.sequence_parallel, case.context)


def batch_of(case: Case, step: int, layout: ParallelLayout) -> list[MicroBatch]:
    """This rank's part of a global batch in which every sequence has another number of masked labels."""
    config = model_of(case.model)
    generator = torch.Generator().manual_seed(1000 + step)
    text = torch.randint(config.vocab_size, (GLOBAL_BATCH, config.seq_length + 1), generator=generator)
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].clone()
    for sequence in range(GLOBAL_BATCH):
        labels[sequence, : (3 * sequence + step) % config.seq_length] = -100
    documents = None
    if config.reset_attention_mask or config.reset_position_ids:
        begins = torch.rand(tokens.shape, generator=generator) < 0.2
        documents = begins.cumsum(dim=1).to(torch.int32)
    own = [part.chunk(layout.data.size)[layout.data.rank] for part in (tokens, labels, documents) if part is not None]
    return [MicroBatch(*parts) for parts in zip(*(part.split(case.micro_batch) for part in own), strict=True)]


def train(case: Case, steps: int = STEPS) -> dict:
    """Losses of each step and of one evaluation after it, gradient norms, and this rank's whole weights at the end.

    Every rank calls this.
    """
    device = start_distributed()
    layout, config = layout_of(case), run_config(case)
    engine = TinyEngine(config, layout, device)
    losses, norms = [], []
    for step in range(steps):
        losses.append(engine.train_batch(batch_of(case, step, layout)).item())
        norms.append(float(engine.gradient_norm()))
    losses.append(engine.evaluate(batch_of(case, steps, layout)).item())
    return {"losses": losses, "norms": norms, "weights": whole_weights(engine, config, layout)}


def whole_weights(engine: TrainEngine, config: RunConfig, layout: ParallelLayout) -> dict[str, torch.Tensor]:
    with deepspeed.zero.GatheredParameters(list(engine.model.parameters()), enabled=config.parallel.zero_stage == 3):
        return gather_weights(engine.model, config.model, layout)


class TinyEngine(TrainEngine):
    """theta begins at another value in each head instead of 0 in all."""

    def _build_model(self, topology):
        model = super()._build_model(topology)
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                heads = torch.linspace(-1.0, 1.0, self.config.model.num_key_value_heads)
                parameter.data.copy_(parameter.shard.take(heads))
        return model


class OnlyTrains(TinyEngine):
    """An engine whose other parameters are frozen: its gradient norm is the share of those that match `pattern`."""

    def __init__(self, pattern: str, *args):
        self.pattern = pattern
        super().__init__(*args)

    def _build_model(self, topology):
        model = super()._build_model(topology)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(re.search(self.pattern, name) is not None)
        for module in model.modules():
            if isinstance(module, Embedding):
                # as in training: under ZeRO-3 DeepSpeed gives up a block's weights too early where its input needs none
                module.register_forward_hook(lambda module, tokens, embedded: embedded.requires_grad_())
        return model


def norm_share(case: Case, pattern: str) -> float:
    """The gradient norm of the parameters whose names match, as the engine counts it."""
    device = start_distributed()
    layout = layout_of(case)
    engine = OnlyTrains(pattern, run_config(case), layout, device)
    engine.train_batch(batch_of(case, 0, layout))
    return float(engine.gradient_norm())
