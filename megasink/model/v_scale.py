"""V-scale (arXiv 2603.17771): v_hat = v r / (r + C) with r = |v|^2 per token and head, C = C_0 exp(theta)."""

from typing import Literal

import torch
from torch import Tensor, nn

from megasink.model.taps import tap_value, widen
from megasink.parallel.collectives import copy_to_tensor_parallel
from megasink.parallel.layout import Axis
from megasink.parallel.shard import sharded_parameter


class VScale(nn.Module):
    """The valve on value states. Mode `on` learns theta per key-value head; `backward-only` keeps the forward value.

    `rows` selects this rank's heads where fewer key-value heads than ranks exist and every rank holds all thetas.
    """

    def __init__(
        self,
        mode: Literal["on", "backward-only"],
        num_key_value_heads: int,
        initial_c: float,
        axis: Axis,
        rows: slice | None,
    ):
        super().__init__()
        self.axis = axis
        self.rows = rows
        self.initial_c = initial_c
        self.forward_identity = mode == "backward-only"
        if mode == "on":
            self.theta = sharded_parameter((num_key_value_heads,), axis, dim=0 if rows is None else None)
            nn.init.zeros_(self.theta)
        else:
            self.theta = None

    def forward(self, value_states: Tensor, theta_tap: Tensor | None = None) -> Tensor:
        """[B, T, key-value heads of this rank, D] -> the same shape and dtype; `theta_tap`: see BlockTaps.theta."""
        if self.theta is None:
            theta = value_states.new_zeros(value_states.shape[-2])
        elif self.rows is None:
            theta = self.theta
        else:
            theta = copy_to_tensor_parallel(self.theta, self.axis)[self.rows]
        # a copy: the optimizer changes theta before the report is made
        value_states = tap_value(value_states, theta_tap, lambda: widen(theta).clone())
        return _VScale.apply(value_states, theta, self.initial_c, self.forward_identity)


class _VScale(torch.autograd.Function):
    """Closed form of both passes, in fp32 at least and cast once. One function, so that no compiler can re-associate
    the detached bracket of the backward-only form."""

    @staticmethod
    def forward(ctx, value, theta, initial_c, forward_identity):
        ctx.save_for_backward(value, theta)
        ctx.initial_c = initial_c
        if forward_identity:
            return value.view_as(value)
        wide, _, phi = _attenuation(value, theta, initial_c)
        value_hat = phi * wide
        # torch 2.11 compiles a cast that changes nothing, as the last operation, into a result without a gradient
        return value_hat if value_hat.dtype == value.dtype else value_hat.to(value.dtype)

    @staticmethod
    def backward(ctx, gradient):
        value, theta = ctx.saved_tensors
        wide, c, phi = _attenuation(value, theta, ctx.initial_c)
        upstream = gradient.to(wide.dtype)
        s = (upstream * wide).sum(dim=-1, keepdim=True)
        # 2 C / (r + C)^2 = 2 (1 - phi)^2 / C, which needs r no more
        value_gradient = phi * upstream + 2.0 * (1.0 - phi).square() / c * s * wide
        theta_gradient = None
        if ctx.needs_input_grad[1]:
            theta_gradient = -(phi * (1.0 - phi) * s).sum(dim=(0, 1, 3)).to(theta.dtype)
        return value_gradient.to(value.dtype), theta_gradient, None, None


def _attenuation(value: Tensor, theta: Tensor, initial_c: float) -> tuple[Tensor, Tensor, Tensor]:
    """value widened [B, T, K, D], C [K, 1], phi = r / (r + C) [B, T, K, 1]."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    c = initial_c * theta.to(wide.dtype).exp().unsqueeze(-1)
    r = wide.square().sum(dim=-1, keepdim=True)
    return wide, c, r / (r + c)
