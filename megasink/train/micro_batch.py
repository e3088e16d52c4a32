"""A micro-batch forward and backward, launched on a GPU as one CUDA graph.

A step of a small model, or of few tokens, waits for the host, which launches some 40 kernels a block one by one. A
graph is recorded once, with the addresses of everything it reads and writes, and launched as a whole. Weights, fp32
sums of gradients and tables stay where they are; tokens, labels and weight are copied to their places.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megasink.stats.recorder import Level, SinkRecorder
from megasink.stats.reduce import Sums
from megasink.train.bf16_step import FusedBF16Optimizer

Run = Callable[[Tensor, Tensor, Tensor], Tensor]

_WARM_UPS = 2
"""Passes of each level before recording, in which all is compiled. The very first overwrites the sums of gradients."""


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    loss: Tensor
    figures: Sums
    """Like `loss` rewritten by each launch."""
    filled: list[Tensor]
    """Marks of the sums that the graph overwrites (MainGradient.empty), which a launch does not change."""


class MicroBatches:
    """Takes micro-batches of one shape forward and backward; a GPU's as graphs, recorded with the first.

    Graphs share one pool of memory, which holds the activations for good; what one leaves there another may overwrite,
    so results are copied after each launch.
    """

    def __init__(self, run: Run, optimizer: FusedBF16Optimizer, levels: Sequence[Level | None], several: bool):
        """
        Args:
            run: forward and backward of (tokens int64 [B, T], labels int64 [B, T], weight []): adds to the optimizer's
                sums and returns the loss, fp32 [], without history. It communicates with no other rank and decides
                nothing by what tensors hold.
            levels: of statistics that will be asked for; None: none.
            several: whether a step has more than one micro-batch.
        """
        self.run = run
        self.optimizer = optimizer
        self.levels = levels
        self.several = several
        self.inputs: list[Tensor] = []
        self.graphs: dict[tuple[Level | None, bool], _Graph] = {}

    def train(self, inputs: tuple[Tensor, Tensor, Tensor], first: bool, recorder: SinkRecorder) -> Tensor:
        """The loss, fp32 []; `inputs` as `run` takes them, `first` of its step, whose sums of gradients it begins."""
        if not self.inputs:
            self.inputs = [given.clone() for given in inputs]
            self.optimizer.forget_history()  # a recorded pass has a stream of its own, and a kept node has not
        if not inputs[0].is_cuda or recorder.level not in self.levels:
            return self.run(*inputs)
        if not self.graphs:
            self._record(recorder)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        launched = self.graphs[recorder.level, first]
        launched.graph.replay()
        for empty in launched.filled:
            empty.fill_(False)
        if recorder.level is not None:
            recorder.sums.merge(launched.figures)
        return launched.loss.clone()

    def _record(self, recorder: SinkRecorder) -> None:
        stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        run = functools.partial(self.run, *self.inputs)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for level in self.levels:  # all before the pool exists, or both would hold activations at once
                for _ in range(_WARM_UPS):
                    recorder.record_apart(run, level)
        for level in self.levels:
            self.optimizer.clear_hp_grads()
            for first in (True, False) if self.several else (True,):
                marks = [empty for _, empty in self.optimizer.main_gradients.values() if empty.tolist()]
                graph = torch.cuda.CUDAGraph()
                # other threads may go on using the device: NCCL's looks at its events
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    loss, figures = recorder.record_apart(run, level)
                filled = [empty for empty in marks if not empty.tolist()]
                self.graphs[level, first] = _Graph(graph, loss, figures, filled)
        self.optimizer.clear_hp_grads()
