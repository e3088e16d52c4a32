"""What a case is asked to do, and the clock that all cases share."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from throughput.shapes import Shape

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
BATCHES = 4

Batch = list[tuple[Tensor, Tensor]]
"""Micro-batches of one step: tokens and labels, int64 [B, T] each, on the device."""
Step = Callable[[Batch], Tensor]
"""One optimizer step; returns the batch's mean loss, fp32 on the device."""


@dataclass(frozen=True)
class Work:
    """One point: a model at a micro-batch, with some numbers of micro-batches per step."""

    case: str
    shape: Shape
    micro_batch_size: int
    accumulate: tuple[int, ...]
    steps: int
    warmup: int
    compile: bool
    scratch: str
    megasink_flags: tuple[str, ...] = ()

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> "Work":
        lists = {name: tuple(fields[name]) for name in ("accumulate", "megasink_flags")}
        return cls(**fields | lists | {"shape": Shape(**fields["shape"])})

    def batch(self, accumulate: int, seed: int) -> Batch:
        """Random tokens; labels are the next tokens."""
        generator = torch.Generator().manual_seed(seed)
        size = (accumulate, self.micro_batch_size, self.shape.seq_length + 1)
        text = torch.randint(self.shape.vocab_size, size, generator=generator).to(device())
        return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in text]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_attention():
    """cuDNN's attention first: the fastest on an H100 that torch has (1.2 ms a layer where flash takes 2.1)."""
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends, set_priority=True)


class Clock:
    """Marks moments in the device's stream without waiting for it; `seconds()` between neighbouring marks waits."""

    def __init__(self) -> None:
        self.marks = []

    def mark(self) -> None:
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if not torch.cuda.is_available():
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) * 1e-3 for before, after in pairs]


def measure_steps(work: Work, build: Callable[[Work], Step]) -> Iterator[dict]:
    """One result per number of accumulations; the model is built once."""
    with best_attention():
        step = build(work)
        for accumulate in work.accumulate:
            batches = [work.batch(accumulate, seed) for seed in range(BATCHES)]
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            first, *_ = timed(step, batches, 1)
            timed(step, batches, work.warmup - 1)
            seconds = timed(step, batches, work.steps)
            loss = step(batches[0]).item()
            yield result(accumulate, seconds, first_step_s=first, loss=loss)


def timed(step: Step, batches: list[Batch], steps: int) -> list[float]:
    """Seconds of each step, back to back."""
    clock = Clock()
    clock.mark()
    for at in range(steps):
        step(batches[at % len(batches)])
        clock.mark()
    return clock.seconds()


def result(accumulate: int, seconds: list[float], **more: object) -> dict:
    """The fields that every case reports."""
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    fields = {"accumulate": accumulate, "step_s": statistics.median(seconds), "steps_s": seconds, "peak_gib": peak}
    return fields | more
