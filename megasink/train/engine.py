"""DeepSpeed behind one face: a pipeline module for ZeRO 0 and 1, a plain module for ZeRO 2 and 3."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from deepspeed.utils import set_z3_leaf_modules
from deepspeed.utils.timer import NoopTimer
from torch import Tensor, nn

from megasink.checkpoint.weights import load_weights
from megasink.config import RunConfig
from megasink.config.deepspeed import deepspeed_config
from megasink.errors import UserError
from megasink.model.block import Block
from megasink.model.llama import FinalNorm, Layer, Llama, blocks_of, llama_layers, stage_blocks, token_losses
from megasink.parallel.fp8 import check_fp8_device
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.pipeline import layer_bounds
from megasink.train.bf16_step import FusedBF16Optimizer, fuse
from megasink.train.clipping import GradientClip
from megasink.train.distributed import quiet_stdout
from megasink.train.micro_batch import MicroBatches
from megasink.train.optimizer import build_optimizer


class MicroBatch(NamedTuple):
    """Whole sequences on the CPU, the same on every rank of a data-parallel rank."""

    tokens: Tensor
    """int64 [B, T]."""
    labels: Tensor
    """int64 [B, T], -100 where a token does not count."""
    document_ids: Tensor | None = None
    """int32 [B, T], where packed documents are kept apart."""


Batch = Sequence[MicroBatch | tuple[Tensor, Tensor]]
"""One data-parallel rank's micro-batches."""


class TrainEngine:
    """One optimizer step over a global batch, whose loss is sum over valid tokens / their number in the whole batch."""

    def __init__(
        self, config: RunConfig, layout: ParallelLayout, device: torch.device, initial_weights: Path | None = None
    ):
        self.config = config
        self.layout = layout
        self.device = device
        if config.training.fp8 != "off":
            check_fp8_device(device)
        self.pipelined = config.parallel.zero_stage <= 1
        self.compiles = config.training.compile and device.type == "cuda"
        topology = PipeModelDataParallelTopology(layout.pipeline.size, layout.tensor.size, layout.replica.size)
        with quiet_stdout():
            self.model = self._build_model(topology)
            if initial_weights is not None:
                load_weights(self.model, config.model, initial_weights)
            for block in blocks_of(self.model):
                block.prepare(config.parallel.recompute, self.compiles, config.training.fp8)
            for module in self.model.modules():
                if self.compiles and isinstance(module, FinalNorm):
                    module.compile()
            optimizer = build_optimizer(self.model, config.optimizer)
            self.clip = None
            if config.parallel.zero_stage == 0:
                self.clip = GradientClip(optimizer, config.optimizer.clip_grad, layout)
            self.engine = self._initialize(optimizer, topology)
            self.engine.timers = NoopTimer()  # its own would keep two events of every step and never look at them
            fuse(self.engine, self.compiles)
        self.micro_batches = self._micro_batches() if config.training.cuda_graph else None

    @property
    def gradient_scale(self) -> float:
        """What activation gradients of train_batch are multiplied with to be those of the whole batch's loss."""
        return 1.0 / self.layout.replica.size

    def train_batch(self, batch: Batch) -> Tensor:
        """Forward, backward and optimizer step; the loss of the whole global batch, fp32 on the device."""
        weighted = self._weigh(batch)
        if self.micro_batches is not None:
            return self._train_by_graphs(weighted, len(batch))
        if self.pipelined:
            return self.engine.train_batch(_one_input(weighted))
        total = torch.zeros((), device=self.device)
        self.engine.train()
        for inputs, targets in weighted:
            loss = self._loss(self.engine(*inputs), targets)
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        return self._mean_over_batch(total, len(batch))

    def evaluate(self, batch: Batch) -> Tensor:
        """The loss of a global batch without training on it, fp32 on the device."""
        weighted = self._weigh(batch)
        if self.pipelined:
            return self.engine.eval_batch(_one_input(weighted), num_micro_batches=len(batch))
        total = torch.zeros((), device=self.device)
        self.engine.eval()
        with torch.no_grad():
            for inputs, targets in weighted:
                total += self._loss(self.engine(*inputs), targets)
        return self._mean_over_batch(total, len(batch))

    def set_learning_rate(self, lr: float) -> None:
        """For the next step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float | Tensor | None:
        """Global norm of the last step's gradients, before clipping."""
        return self.engine.get_global_grad_norm() if self.clip is None else self.clip.norm

    def _train_by_graphs(self, weighted: Iterator[tuple[tuple[Tensor], tuple]], count: int) -> Tensor:
        """As DeepSpeed's train_batch where a pipeline has one stage; forward and backward are MicroBatches'."""
        recorder = blocks_of(self.model)[0].recorder
        total = torch.zeros((), device=self.device)
        self.engine.train()
        for place, ((tokens,), targets) in enumerate(weighted):
            total += self.micro_batches.train((tokens, *targets), first=place == 0, recorder=recorder)
        self.engine._exec_optimizer_step()
        return self._mean_over_batch(total, count)

    def _micro_batches(self) -> MicroBatches:
        optimizer = self.engine.optimizer
        if not isinstance(optimizer, FusedBF16Optimizer):
            raise UserError("--cuda-graph needs the optimizer on the GPU; take the offloading from --deepspeed-config")
        accumulate = self.engine.gradient_accumulation_steps()

        def run(tokens: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
            loss = self._loss(self.model(tokens), (labels, weight))
            (loss / accumulate).backward()
            return loss.detach()

        levels = self.config.sink_stats.levels(0, self.config.training.train_iters)
        return MicroBatches(run, optimizer, levels, several=accumulate > 1)

    def _weigh(self, batch: Batch) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]]:
        """Inputs and targets of each micro-batch, on the device: this rank's part of each sequence.

        The targets' second entry is the factor that makes DeepSpeed's mean over micro-batches and replicas the loss
        over all valid tokens of the global batch.
        """
        replicas = self.layout.replica
        micro_batches = [MicroBatch(*entry) for entry in batch]
        count = sum(int((self._own_part(entry.labels) != -100).sum()) for entry in micro_batches)
        valid = torch.full((), float(count), device=self.device)  # filled there: a copy would wait for the device
        if replicas.size > 1:
            dist.all_reduce(valid, group=replicas.group)
        weight = len(batch) * replicas.size / valid
        for tokens, labels, document_ids in micro_batches:
            inputs = [self._own_part(tokens)] + ([] if document_ids is None else [document_ids])
            inputs = tuple(tensor.to(self.device, non_blocking=True) for tensor in inputs)
            yield inputs, (self._own_part(labels).to(self.device, non_blocking=True), weight)

    def _own_part(self, sequences: Tensor) -> Tensor:
        """[B, T] -> [B, T / context-parallel ranks]."""
        context = self.layout.context
        return sequences.chunk(context.size, dim=1)[context.rank].contiguous()

    def _mean_over_batch(self, total: Tensor, micro_batches: int) -> Tensor:
        replicas, mean = self.layout.replica, total / micro_batches
        if replicas.size > 1:  # divided before and after, as DeepSpeed's pipeline does: the same number to the bit
            dist.all_reduce(mean, group=replicas.group)
        return mean / replicas.size

    def _loss(self, logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        labels, weight = targets
        return token_losses(logits, labels, self.config.model, self.layout, self.compiles).sum() * weight

    def _initialize(
        self, optimizer: torch.optim.Optimizer, topology: PipeModelDataParallelTopology
    ) -> deepspeed.DeepSpeedEngine:
        """DeepSpeed's engine. Raises UserError for settings of --deepspeed-config that it does not take."""
        settings = deepspeed_config(self.config, self.layout.replica.size)
        try:
            engine, *_ = deepspeed.initialize(
                model=self.model,
                optimizer=optimizer,
                config=settings,
                mpu=None if self.pipelined else PipelineParallelGrid(topology, dist.group.WORLD),
                dist_init_required=False,
            )
        except (AssertionError, ValueError, DeepSpeedConfigError, ZeRORuntimeException) as error:
            path = self.config.parallel.deepspeed_config
            if path is None:
                raise
            said = [line.strip() for line in str(error).splitlines() if "For further information" not in line]
            raise UserError(f"{path}: DeepSpeed refuses it ({' '.join(said)}); change or remove the setting") from error
        return engine

    def _build_model(self, topology: PipeModelDataParallelTopology) -> nn.Module:
        model, seed = self.config.model, self.config.training.seed
        if not self.pipelined:
            llama = Llama(model, self.layout, seed).to(self.device)
            # a block's weights are gathered and given up together: its products take several modules' weights at once
            set_z3_leaf_modules(llama, [Block])
            return llama
        specs = [_layer_spec(layer) for layer in llama_layers(model, self.layout, seed)]
        bounds = layer_bounds(stage_blocks(model, self.config.parallel))
        return _Stage(bounds, specs, topology=topology, loss_fn=self._loss)


def _one_input(weighted: Iterator[tuple[tuple[Tensor, ...], tuple]]) -> Iterator[tuple[Tensor | tuple, tuple]]:
    """A pipeline's layers take one argument: tokens, or (tokens, document ids)."""
    for inputs, targets in weighted:
        yield inputs if len(inputs) > 1 else inputs[0], targets


class _Stage(PipelineModule):
    """This rank's stage of the layers, cut where we say: DeepSpeed has no option for it."""

    def __init__(self, bounds: list[int], *args, **kwargs):
        self.parts = bounds
        super().__init__(*args, **kwargs)

    def train(self, mode: bool = True) -> "_Stage":
        """Does nothing where it is so already: DeepSpeed asks in every step, and each module would be visited."""
        return self if self.training == mode else super().train(mode)

    def _partition_layers(self, method: str = "uniform") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


def _layer_spec(layer: Layer) -> LayerSpec:
    if layer.tied_key is None:
        return LayerSpec(layer.module, *layer.arguments)
    return TiedLayerSpec(
        layer.tied_key, layer.module, *layer.arguments, forward_fn=layer.forward, tied_weight_attr="weight"
    )
