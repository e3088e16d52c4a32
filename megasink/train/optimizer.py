"""AdamW with weight decay where it belongs, and the learning rate of each step."""

import math

import torch
from torch import nn

from megasink.config import OptimizerConfig
from megasink.parallel.shard import ALIGNED_ELEMENTS


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Matrices decay; norm weights and V-scale's theta do not.

    DeepSpeed lays a group's weights behind each other, in this order: sizes that are multiples of 8, 4 and 2 first
    (theta of a few heads last), so that each begins at an address as even as its size. A block compiled for one layer
    reads those of every layer, and torch's compiler looks at the first layer's addresses only.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = sorted((p for p in parameters if p.dim() < 2), key=lambda p: -math.gcd(p.numel(), ALIGNED_ELEMENTS))
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=all(parameter.is_cuda for parameter in parameters),
    )


def learning_rate(step: int, train_iters: int, config: OptimizerConfig) -> float:
    """Of the step that follows `step` completed ones: linear warm-up, then cosine, WSD or constant."""
    if step < config.lr_warmup_iters:
        return config.lr * (step + 1) / config.lr_warmup_iters
    if config.lr_decay_style == "constant":
        return config.lr
    if config.lr_decay_style == "WSD":
        left = (train_iters - step) / max(1, config.lr_wsd_decay_iters)
        return config.min_lr + (config.lr - config.min_lr) * min(1.0, left)
    progress = (step - config.lr_warmup_iters) / max(1, train_iters - config.lr_warmup_iters)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
