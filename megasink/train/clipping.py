"""The gradient norm without ZeRO, where DeepSpeed keeps no norm and, over pipeline stages, clips by a wrong one."""

import torch
from torch import Tensor

from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import ParallelLayout


class GradientClip:
    """Runs before each step of an optimizer that holds whole fp32 gradients; `norm` is that of the last step."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float, layout: ParallelLayout):
        self.max_norm = max_norm
        self.layout = layout
        self.norm: Tensor | None = None
        optimizer.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.norm = global_norm(parameters, self.layout)
        # a step whose gradients are not finite leaves weights and moments as they were
        if self.norm.is_cuda:
            optimizer.found_inf = (~self.norm.isfinite()).float()  # read by the fused kernel, not by the host
        elif not self.norm.isfinite():
            for parameter in parameters:
                parameter.grad = None
            return
        if self.max_norm > 0:
            torch._foreach_mul_(gradients, (self.max_norm / (self.norm + 1e-6)).clamp(max=1.0))


def global_norm(parameters: list[Tensor], layout: ParallelLayout) -> Tensor:
    """Norm of all gradients of the model, fp32 scalar, the same on every rank; each parameter counts once."""
    device = parameters[0].device
    squares = torch.zeros((), device=device)
    for parameter in parameters:
        whole_here = layout.tensor.rank == 0 or parameter.shard.dim is not None
        # DeepSpeed marks the copies of a tied weight on all pipeline stages but its owner's
        copy = getattr(parameter, "ds_pipe_replicated", False)
        if parameter.grad is not None and whole_here and not copy:
            squares += parameter.grad.float().square().sum()
    return all_reduce(all_reduce(squares, layout.tensor), layout.pipeline).sqrt()
