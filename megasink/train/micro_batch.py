"""A micro-batch forward and backward, launched on a GPU as one CUDA graph.

A step of a small model, or of few tokens, waits for the host, which launches some 50 kernels a block one by one. A
graph is recorded once, with the addresses of everything it reads and writes, and replayed by a single launch. Weights,
fp32 sums of gradients, tables and statistics stay at their addresses; tokens, labels and weight are copied to theirs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megasink.stats.recorder import Level, SinkRecorder
from megasink.stats.reduce import Sums
from megasink.train.bf16_step import FusedBF16Optimizer

_WARM_UPS = 2
"""Passes before recording, in which all is compiled: one that overwrites the sums of gradients, one that adds."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    loss: Tensor
    figures: Sums | None
    """The statistics; like `loss` rewritten by each replay."""
    filled: list[Tensor]
    """Of the optimizer's sums that are overwritten, the marks (MainGradient.empty), which no replay changes."""


class MicroBatches:
    """Takes micro-batches of one shape forward and backward; on a GPU as a graph, with `full` statistics step by step.

    `run(tokens, labels, weight)` does so with one of them: adds its gradients to the optimizer's sums and returns its
    loss, fp32 [], without history. It communicates with no other rank and decides nothing by what tensors hold.
    """

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor], Tensor], optimizer: FusedBF16Optimizer):
        self.run = run
        self.optimizer = optimizer
        self.inputs: list[Tensor] = []
        self.recorded: dict[tuple[Level | None, bool], _Recorded] = {}

    def train(
        self, tokens: Tensor, labels: Tensor, weight: Tensor, first: bool, recorder: SinkRecorder | None
    ) -> Tensor:
        """The loss, fp32 [].

        Args:
            tokens: int64 [B, T].
            labels: int64 [B, T].
            weight: [], as `run` takes it.
            first: of its step, so that the sums of gradients begin with it.
            recorder: which statistics are being gathered, and where they go.
        """
        level = None if recorder is None else recorder.level
        if not tokens.is_cuda or level not in (None, "light"):
            return self.run(tokens, labels, weight)
        if not self.inputs:
            self.inputs = [torch.empty_like(given) for given in (tokens, labels, weight)]
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        for own, given in zip(self.inputs, (tokens, labels, weight), strict=True):
            own.copy_(given)
        if (level, first) not in self.recorded:
            run = functools.partial(self.run, *self.inputs)
            passes = (lambda: (run(), None)) if level is None else functools.partial(recorder.record_apart, run)
            self.recorded[level, first] = self._record(passes, warm_up=first)
        recorded = self.recorded[level, first]
        recorded.graph.replay()
        for empty in recorded.filled:
            empty.fill_(False)
        if recorded.figures is not None:
            recorder.sums.merge(recorded.figures)
        return recorded.loss.clone()

    def _record(self, passes: Callable[[], tuple[Tensor, Sums | None]], warm_up: bool) -> _Recorded:
        if warm_up:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(_WARM_UPS):
                    passes()
            torch.cuda.current_stream().wait_stream(self.stream)
            self.optimizer.clear_hp_grads()
        marks = [empty for _, empty in self.optimizer.main_gradients.values() if empty.tolist()]
        graph = torch.cuda.CUDAGraph()
        # other threads may go on using the device meanwhile: NCCL's looks at its events
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            loss, figures = passes()
        return _Recorded(graph, loss, figures, [empty for empty in marks if not empty.tolist()])
