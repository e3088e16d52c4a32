"""Copies of tensors in host memory, made without waiting for each other."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor


def to_host(value: Any) -> Any:
    """Nested dicts, lists and tuples with a CPU copy of every tensor (pinned, still arriving, if it is on a GPU).

    A member of an enumeration becomes its value: Python 3.11.2 pickles it as a call of getattr, which is not data.
    """
    if isinstance(value, Tensor):
        source = value.detach()
        if source.is_cuda:
            return torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source, non_blocking=True)
        return source.clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: to_host(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(to_host, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_host, value))
    return value.value if isinstance(value, Enum) else value


def finish_host_copies() -> None:
    """Wait until all copies that to_host began have arrived."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def num_bytes(value: Any) -> int:
    """Of all tensors in nested dicts, lists and tuples."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
