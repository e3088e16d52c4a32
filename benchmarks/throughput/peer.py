"""The loop around a peer's model: bf16 weights with fp32 masters, torch's fused AdamW, clipping by torch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from throughput.work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Batch, Step, device


def peer_step(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """`loss(tokens, labels)` is the mean over a micro-batch, through the bf16 weights of `model`."""
    optimizer = MixedPrecisionAdamW(list(model.parameters()))

    def step(batch: Batch) -> Tensor:
        total = torch.zeros((), device=device())
        for tokens, labels in batch:
            micro_batch_loss = loss(tokens, labels) / len(batch)
            micro_batch_loss.backward()
            total += micro_batch_loss.detach()
            if len(batch) > 1:
                optimizer.accumulate()
        optimizer.step()
        return total

    return step


class MixedPrecisionAdamW:
    """What a careful user writes: clip the bf16 gradients, or their fp32 sums, update masters, copy them back."""

    def __init__(self, weights: list[nn.Parameter]):
        self.weights = [weight for weight in weights if weight.requires_grad]
        self.masters = [nn.Parameter(weight.detach().float()) for weight in self.weights]
        matrices = [master for master in self.masters if master.dim() > 1]
        vectors = [master for master in self.masters if master.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
            lr=LEARNING_RATE,
            betas=BETAS,
            eps=EPSILON,
            fused=device().type == "cuda",
        )
        self.sums = [torch.empty_like(master) for master in self.masters]
        self.accumulated = 0

    @torch.no_grad()
    def accumulate(self) -> None:
        gradients = [weight.grad for weight in self.weights]
        (torch._foreach_add_ if self.accumulated else torch._foreach_copy_)(self.sums, gradients)
        self.accumulated += 1
        self._drop_gradients()

    @torch.no_grad()
    def step(self) -> None:
        if not self.accumulated:
            torch.nn.utils.clip_grad_norm_(self.weights, CLIP, foreach=True)
            torch._foreach_copy_(self.sums, [weight.grad for weight in self.weights])
            self._drop_gradients()
        for master, total in zip(self.masters, self.sums, strict=True):
            master.grad = total
        if self.accumulated:
            torch.nn.utils.clip_grad_norm_(self.masters, CLIP, foreach=True)
        self.optimizer.step()
        torch._foreach_copy_(self.weights, self.masters)
        self.accumulated = 0

    def _drop_gradients(self) -> None:
        for weight in self.weights:
            weight.grad = None
