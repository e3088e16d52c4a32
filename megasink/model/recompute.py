"""Activation recomputation: what a block keeps of its forward pass for the backward pass.

| mode      | kept                                      | computed again                                   |
|-----------|-------------------------------------------|--------------------------------------------------|
| none      | everything                                | nothing                                          |
| selective | results of matrix products and attention  | norms, RoPE, V-scale, SiLU, communication        |
| full      | the block's input                         | the whole block                                  |
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recomputation = Literal["none", "selective", "full"]

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_mm.default,
    _aten.amax.default,  # fp8 scales: one number for a pass over a tensor
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    torch.ops.higher_order.flex_attention,
}


def recomputed(function: Callable, mode: Recomputation) -> Callable:
    """`function` with the same values and gradients, keeping less in between."""
    if mode == "none":
        return function
    options = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in the model is random
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, function, **options)


def _policy(_context, operation, *_args, **_kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
