"""DeepSpeed's bf16 optimizer with fewer passes over memory and no wait for the device.

Per step DeepSpeed widens, adds and zeroes gradients, scales them to clip, runs AdamW, and casts the weights: each its
own pass over every parameter, with the host waiting for the norm in between. Here the products that make gradients of
matrices add them to their fp32 sums (megasink.parallel.main_gradient), the first micro-batch overwrites what is there,
and one kernel reads a sum once, clips it, updates master weight and moments, and writes the bf16 weight. A norm that is
not finite leaves everything as it was.

Between replicas DeepSpeed rounds the fp32 sums to bf16 and adds whole gradients everywhere. Here they stay fp32, and
each replica receives the sum of its own partition alone: as many bytes on the wire, no copies, no rounding.
"""

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.utils import all_gather_dp_groups, bwc_tensor_model_parallel_rank, is_model_parallel_parameter
from torch import Tensor, nn
from torch import distributed as dist

from megasink.parallel.collectives import reduce_scatter
from megasink.parallel.layers import ParallelLinear, VocabParallelEmbedding
from megasink.parallel.main_gradient import MainGradient
from megasink.train.gradient_sum import take_gradient


class FusedBF16Optimizer(BF16_Optimizer):
    """Same state and checkpoints as BF16_Optimizer around torch.optim.AdamW; use `fuse` to make one."""

    def _update_hp_grad(self, lp: Tensor, group_idx: int, param_idx: int, clear_lp_grads: bool) -> None:
        """Take one parameter's micro-batch gradient into its fp32 sum, where autograd has handed one on."""
        if lp.grad is None:
            return
        total, empty = self.main_gradients[lp]
        take_gradient(total.flatten(), lp.grad.flatten(), add=not empty.tolist(), fused=self.compile_step)
        empty.data.fill_(False)
        if clear_lp_grads:
            lp.grad = None

    def clear_hp_grads(self) -> None:
        """What is there is overwritten by the next micro-batch."""
        for _, empty in self.main_gradients.values():
            empty.fill_(True)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Clip, AdamW and cast; the update is left out on the device where the gradient norm is not finite."""
        absent = [total for total, empty in self.main_gradients.values() if empty.tolist()]
        if absent:
            torch._foreach_zero_(absent)
        replicas = dist.get_world_size(group=self.dp_process_group)
        self._sum_over_replicas()
        norm = self._norm_of_sums() / replicas
        self._global_grad_norm = norm
        finite = norm.isfinite()
        divisor = replicas * ((norm / self.clip_grad).clamp(min=1.0) if self.clip_grad > 0 else torch.ones_like(norm))
        update = _compiled_adamw if self.compile_step else _adamw
        for i, group in enumerate(self.optimizer.param_groups):
            master = self.fp32_groups_flat_partition[i]
            state = self._moments(master)
            own = self.bf16_partitioned_groups[i][dist.get_rank(group=self.real_dp_process_group[i])]
            update(
                master.detach(),
                own,
                self.fp32_groups_gradient_flat_partition[i],
                state["exp_avg"],
                state["exp_avg_sq"],
                state["step"],
                torch.full((), group["lr"], device=norm.device),
                divisor,
                finite,
                *group["betas"],
                group["eps"],
                group["weight_decay"],
            )
        self._lazy_init_hp_params_optimizer_state()
        all_gather_dp_groups(
            groups_flat=self.bf16_groups_flat,
            partitioned_param_groups=self.bf16_partitioned_groups,
            dp_process_group=self.real_dp_process_group,
            start_alignment_factor=self.nccl_start_alignment_factor,
            allgather_bucket_size=self.allgather_bucket_size,
        )
        self.clear_hp_grads()

    def _sum_over_replicas(self) -> None:
        """Into this rank's partition; what lies outside is this rank's own sum still, and not read."""
        for whole, own in zip(self.fp32_groups_gradients_flat, self.fp32_groups_gradient_flat_partition, strict=True):
            if own.numel() < whole.numel():
                reduce_scatter(own, whole, group=self.dp_process_group)

    def _norm_of_sums(self) -> Tensor:
        """Global 2-norm, fp32 on the device."""
        squares = torch.zeros((), device=self.fp32_groups_gradients_flat[0].device)
        if self.counted:
            squares = torch.stack(torch._foreach_norm(self.counted)).square().sum()
        dist.all_reduce(squares)
        return squares.sqrt()

    def counted_gradients(self) -> list[Tensor]:
        """Views of this rank's partition in which each parameter of the model is once, over all ranks of the job."""
        speaks = bwc_tensor_model_parallel_rank(mpu=self.mpu) == 0
        views = []
        for parameters, gradients, own in zip(
            self.bf16_groups, self.fp32_groups_gradients, self.fp32_groups_gradient_flat_partition, strict=True
        ):
            first, end = own.storage_offset(), own.storage_offset() + own.numel()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                start = max(first, gradient.storage_offset())
                stop = min(end, gradient.storage_offset() + gradient.numel())
                whole_here = speaks or is_model_parallel_parameter(parameter)
                # DeepSpeed marks the copies of a tied weight on all pipeline stages but its owner's
                copy = getattr(parameter, "ds_pipe_replicated", False)
                if start < stop and whole_here and not copy:
                    views.append(own[start - first : stop - first])
        return views

    def forget_history(self) -> None:
        """Of the weights' flat buffers and fragments, which DeepSpeed makes with gradients on, at its start and at a
        checkpoint's load: with it each weight's node of autograd would outlive every pass."""
        self.bf16_groups_flat = [flat.detach() for flat in self.bf16_groups_flat]
        self.bf16_partitioned_groups = [[part.detach() for part in parts] for parts in self.bf16_partitioned_groups]
        for weight in self.main_gradients:
            if weight._hp_mapping is not None:  # None where another replica's partition holds it
                weight._hp_mapping.lp_fragment = weight._hp_mapping.lp_fragment.detach()

    def _moments(self, master: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one flat partition, as torch names it."""
        state = self.optimizer.state[master]
        if not state:
            state["step"] = torch.zeros((), device=master.device)
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        return state


def fuse(engine: DeepSpeedEngine, compile: bool) -> None:
    """Turn the optimizer DeepSpeed made into the fused one, where it is its bf16 optimizer (ZeRO 0 and 1)."""
    optimizer = engine.optimizer
    if type(optimizer) is BF16_Optimizer:
        optimizer.__class__ = FusedBF16Optimizer  # adds behaviour only; DeepSpeed offers no place to name a class
        optimizer.compile_step = compile
        optimizer.counted = optimizer.counted_gradients()
        optimizer.main_gradients = _main_gradients(optimizer)
        for module in engine.module.modules():
            if _multiplies(module):
                module.main_gradient = optimizer.main_gradients.get(module.weight)  # None where it is frozen
        engine.pipeline_enable_backward_allreduce = False  # step() sums over replicas


def _main_gradients(optimizer: BF16_Optimizer) -> dict[nn.Parameter, MainGradient]:
    """Of each parameter: DeepSpeed's fp32 sums."""
    found = {}
    for parameters, totals in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
        for parameter, total in zip(parameters, totals, strict=True):
            # autograd counts changes of what it holds: not those of its neighbours in DeepSpeed's flat buffer
            own = total.data.view(parameter.shape)
            found[parameter] = MainGradient(own, torch.ones((), dtype=torch.bool))
            parameter._hp_grad = total  # where DeepSpeed's pipeline looks for a tied weight's
    return found


def _multiplies(module: nn.Module) -> bool:
    """Whether its products add their weight's gradient themselves: not in fp8, nor where ranks' parts are summed."""
    if isinstance(module, ParallelLinear):
        return module.fp8 is None and getattr(module, "rows", None) is None
    return isinstance(module, VocabParallelEmbedding)


def _adamw(
    master: Tensor,
    low: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    divisor: Tensor,
    finite: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW (arXiv 1711.05101) in place over flat fp32 tensors [n]; `low` [n] receives the weights in its own dtype."""
    step += finite
    gradient = gradient / divisor
    first = beta1 * exp_avg + (1.0 - beta1) * gradient
    second = beta2 * exp_avg_sq + (1.0 - beta2) * gradient * gradient
    denominator = (second / (1.0 - beta2**step)).sqrt() + eps
    weights = master * (1.0 - lr * weight_decay) - lr / (1.0 - beta1**step) * first / denominator
    weights = torch.where(finite, weights, master)
    exp_avg.copy_(torch.where(finite, first, exp_avg))
    exp_avg_sq.copy_(torch.where(finite, second, exp_avg_sq))
    master.copy_(weights)
    low.copy_(weights)


# not dynamic: after the second parameter group one kernel for any size would serve all
_compiled_adamw = torch.compile(_adamw, dynamic=False)
