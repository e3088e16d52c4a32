"""DeepSpeed behind one face: a pipeline module for ZeRO 0 and 1, a plain module for ZeRO 2 and 3."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch import Tensor, nn

from megasink.checkpoint.weights import load_weights
from megasink.config import RunConfig
from megasink.config.deepspeed import deepspeed_config
from megasink.model.llama import Layer, Llama, blocks_of, llama_layers, token_losses
from megasink.parallel.layout import ParallelLayout
from megasink.train.distributed import quiet_stdout
from megasink.train.optimizer import build_optimizer

Batch = Sequence[tuple[Tensor, Tensor]]
"""One rank's micro-batches: (tokens, labels), int64 [B, T] each, on the CPU."""


class TrainEngine:
    """One optimizer step over a global batch, whose loss is sum over valid tokens / their number in the whole batch."""

    def __init__(
        self, config: RunConfig, layout: ParallelLayout, device: torch.device, initial_weights: Path | None = None
    ):
        self.config = config
        self.layout = layout
        self.device = device
        self.pipelined = config.parallel.zero_stage <= 1
        topology = PipeModelDataParallelTopology(layout.pipeline.size, layout.tensor.size, layout.data.size)
        with quiet_stdout():
            self.model = self._build_model(topology)
            if initial_weights is not None:
                load_weights(self.model, config.model, initial_weights)
            if config.training.compile and device.type == "cuda":
                for block in blocks_of(self.model):
                    block.compile()
            self.engine, *_ = deepspeed.initialize(
                model=self.model,
                optimizer=build_optimizer(self.model, config.optimizer),
                config=deepspeed_config(config, layout.data.size),
                mpu=None if self.pipelined else PipelineParallelGrid(topology, dist.group.WORLD),
                dist_init_required=False,
            )

    @property
    def gradient_scale(self) -> float:
        """What activation gradients of train_batch are multiplied with to be those of the whole batch's loss."""
        return 1.0 / self.layout.data.size

    def train_batch(self, batch: Batch) -> Tensor:
        """Forward, backward and optimizer step; the loss of the whole global batch, fp32 on the device."""
        weighted = self._weigh(batch)
        if self.pipelined:
            return self.engine.train_batch(weighted)
        total = torch.zeros((), device=self.device)
        self.engine.train()
        for tokens, targets in weighted:
            loss = self._loss(self.engine(tokens), targets)
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        return self._mean_over_batch(total, len(batch))

    def evaluate(self, batch: Batch) -> Tensor:
        """The loss of a global batch without training on it."""
        weighted = self._weigh(batch)
        if self.pipelined:
            return self.engine.eval_batch(weighted, num_micro_batches=len(batch))
        total = torch.zeros((), device=self.device)
        self.engine.eval()
        with torch.no_grad():
            for tokens, targets in weighted:
                total += self._loss(self.engine(tokens), targets)
        return self._mean_over_batch(total, len(batch))

    def set_learning_rate(self, lr: float) -> None:
        """For the next step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float | Tensor | None:
        """Global norm of the last step's gradients, before clipping."""
        return self.engine.get_global_grad_norm()

    def _weigh(self, batch: Batch) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Add the factor that makes DeepSpeed's mean over micro-batches and ranks the loss over all valid tokens."""
        valid = torch.stack([(labels != -100).sum() for _, labels in batch]).sum().to(self.device, torch.float32)
        if self.layout.data.size > 1:
            dist.all_reduce(valid, group=self.layout.data.group)
        weight = len(batch) * self.layout.data.size / valid
        for tokens, labels in batch:
            tokens = tokens.to(self.device, non_blocking=True)
            yield tokens, (labels.to(self.device, non_blocking=True), weight)

    def _mean_over_batch(self, total: Tensor, micro_batches: int) -> Tensor:
        if self.layout.data.size > 1:
            dist.all_reduce(total, group=self.layout.data.group)
        return total / (micro_batches * self.layout.data.size)

    def _loss(self, logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        labels, weight = targets
        return token_losses(logits, labels, self.config.model, self.layout).sum() * weight

    def _build_model(self, topology: PipeModelDataParallelTopology) -> nn.Module:
        model, seed = self.config.model, self.config.training.seed
        if not self.pipelined:
            return Llama(model, self.layout, seed).to(self.device)
        specs = [_layer_spec(layer) for layer in llama_layers(model, self.layout, seed)]
        return PipelineModule(specs, topology=topology, loss_fn=self._loss)


def _layer_spec(layer: Layer) -> LayerSpec:
    if layer.tied_key is None:
        return LayerSpec(layer.module, *layer.arguments)
    return TiedLayerSpec(
        layer.tied_key, layer.module, *layer.arguments, forward_fn=layer.forward, tied_weight_attr="weight"
    )
