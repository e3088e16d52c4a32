"""What no Llama of the shape can beat with these libraries: its matrix products, its attention, AdamW's traffic.

Products: forward and both backward products of every weight, fused q-k-v and gate-up, through torch's matmul.
Attention: cuDNN's, forward and backward. AdamW: one kernel that reads gradient, master weight and both moments and
writes master, moments and bf16 weight: 28 bytes a parameter (30 with the fp32 gradient of an accumulated batch). Norms,
RoPE, SwiGLU, embedding, cross entropy, clipping and the accumulation itself count as nothing.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from throughput.bare import adamw
from throughput.shapes import Shape
from throughput.work import Clock, Work, best_attention, device, result

Part = tuple[str, int, Callable[[], object]]
"""Name, how often in one micro-batch, and the call."""


def measure(work: Work) -> Iterator[dict]:
    with best_attention():
        parts = products(work.shape, work.micro_batch_size) + attention(work)
        passes = time_parts(parts, work.warmup, work.steps)
    micro_batch = {name: statistics.median(seconds) for name, seconds in passes.items()}
    del parts
    for accumulate in work.accumulate:
        gradient_dtype = torch.bfloat16 if accumulate == 1 else torch.float32
        optimizer = optimizer_traffic(work, gradient_dtype)
        whole = [accumulate * sum(times) + optimizer for times in zip(*passes.values(), strict=True)]
        seconds = {name: accumulate * value for name, value in micro_batch.items()} | {"AdamW": optimizer}
        yield result(accumulate, whole, parts_s=seconds)


def products(shape: Shape, micro_batch_size: int) -> list[Part]:
    """y = x W^T, dx = dy W, dW = dy^T x of each weight, on random bf16 data."""
    tokens = micro_batch_size * shape.seq_length
    parts = []
    matrices = [(size, shape.num_layers) for size in shape.block_matrices]
    for (rows, columns), count in [*matrices, ((shape.vocab_size, shape.hidden_size), 1)]:
        x, dy, weight = _random(tokens, columns), _random(tokens, rows), _random(rows, columns)
        parts += [
            (f"{rows}x{columns} forward", count, lambda x=x, weight=weight: F.linear(x, weight)),
            (f"{rows}x{columns} backward", count, lambda dy=dy, weight=weight: dy @ weight),
            (f"{rows}x{columns} weight", count, lambda dy=dy, x=x: dy.t() @ x),
        ]
    return parts


def attention(work: Work) -> list[Part]:
    shape = work.shape
    size = (work.micro_batch_size, shape.seq_length, shape.num_attention_heads, shape.head_dim)
    query, key, value = (_random(*size).transpose(1, 2).requires_grad_() for _ in range(3))

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    context, gradient = forward(), _random(*size).transpose(1, 2)

    def backward() -> object:
        return torch.autograd.grad(context, (query, key, value), gradient, retain_graph=True)

    return [("attention forward", shape.num_layers, forward), ("attention backward", shape.num_layers, backward)]


def time_parts(parts: list[Part], warmup: int, passes: int) -> dict[str, list[float]]:
    """Seconds of each part in each pass over a micro-batch's calls, in the order of a step: the card stays as busy, and
    so as hot, as in training."""
    seconds = defaultdict(list)
    for at in range(warmup + passes):
        clock, order = Clock(), []
        clock.mark()
        for repeat in range(max(count for _, count, _ in parts)):
            for name, count, call in parts:
                if repeat < count:
                    call()
                    clock.mark()
                    order.append(name)
        sums = defaultdict(float)
        for name, value in zip(order, clock.seconds(), strict=True):
            sums[name] += value
        if at >= warmup:
            for name, total in sums.items():
                seconds[name].append(total)
    return seconds


def optimizer_traffic(work: Work, gradient_dtype: torch.dtype) -> float:
    """Median seconds of one AdamW update of all parameters at once."""
    count, where = work.shape.num_parameters, device()
    kernel = torch.compile(adamw, dynamic=False) if work.compile else adamw
    weight, gradient = torch.randn(count, device=where).bfloat16(), torch.randn(count, device=where).to(gradient_dtype)
    master, first, second = (torch.rand(count, device=where) for _ in range(3))
    one = torch.ones((), device=where)
    clock = Clock()
    for at in range(work.warmup + work.steps + 1):
        if at >= work.warmup:
            clock.mark()
        kernel(weight, master, first, second, gradient, one, one, one * 1e-4, 0.1)
    return statistics.median(clock.seconds())


def _random(*size: int) -> Tensor:
    return torch.randn(*size, device=device(), dtype=torch.bfloat16)
