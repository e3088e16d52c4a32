"""RoPE and V-scale of one packed query-key-value product, on a GPU: one pass over it, and one over its gradient.

Same numbers as megasink.model.rope and megasink.model.v_scale, whose arithmetic this is: in fp32, cast once. A
compiler reads a value state twice, for its norm and to scale it, and joins the three gradients at a fifth of the
memory's speed.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without; only CUDA tensors need it
    triton = None

_HEADS = 16
"""Heads of a program."""


def usable(packed: Tensor) -> bool:
    """On this device, for this dtype and head width."""
    width = packed.shape[-1]
    return triton is not None and packed.dtype == torch.bfloat16 and packed.is_cuda and width in (32, 64, 128, 256)


def rotate_and_scale(
    packed: Tensor,
    cos: Tensor,
    sin: Tensor,
    groups: int,
    theta: Tensor | None,
    initial_c: float,
    value_tap: Tensor | None = None,
    value_grad_tap: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query and key rotated, and the value states scaled.

    Args:
        packed: [B, T, N + 2 K, D]: N query heads, K key heads, K value heads.
        cos, sin: fp32 [T, D] or [B, T, D], both halves of D alike.
        groups: K.
        theta: [K]; C = initial_c exp(theta). None: the value states stay what they are.
        value_tap, value_grad_tap: leaves [B, T, K], see BlockTaps.value and BlockTaps.value_grad.

    Returns:
        [B, T, N, D], [B, T, K, D] and [B, T, K, D], contiguous.
    """
    return _RotateAndScale.apply(packed, cos, sin, groups, theta, initial_c, value_tap, value_grad_tap)


class _RotateAndScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed, cos, sin, groups, theta, initial_c, value_tap, value_grad_tap):
        packed = packed.contiguous()
        batch, length, heads, width = packed.shape
        query, key, value_hat = (
            packed.new_empty(batch, length, count, width) for count in (heads - 2 * groups, groups, groups)
        )
        squares = packed.new_empty(batch, length, groups, dtype=torch.float32)
        _rotary_v_scale_kernel[_grid(packed, groups)](
            *(packed, cos, sin, theta, query, key, value_hat, squares),
            *(*_sizes(packed, cos, groups), initial_c, width, _HEADS),
        )
        ctx.save_for_backward(None if theta is None else packed, cos, sin, theta, squares)
        ctx.initial_c = initial_c
        return query, key, value_hat

    @staticmethod
    def backward(ctx, query_grad, key_grad, value_hat_grad):
        packed, cos, sin, theta, squares = ctx.saved_tensors
        batch, length, groups, width = value_hat_grad.shape
        packed_grad = query_grad.new_empty(batch, length, query_grad.shape[2] + 2 * groups, width)
        grad_squares = torch.empty_like(squares)
        theta_grad = None if theta is None else torch.empty_like(squares)
        upstream = [gradient.contiguous() for gradient in (query_grad, key_grad, value_hat_grad)]
        _rotary_v_scale_gradient_kernel[_grid(packed_grad, groups)](
            *(packed, cos, sin, theta, *upstream, packed_grad, theta_grad, grad_squares),
            *(*_sizes(packed_grad, cos, groups), ctx.initial_c, width, _HEADS),
        )
        if theta is not None:
            theta_grad = theta_grad.sum(dim=(0, 1)).to(theta.dtype)
        taps = [each if ctx.needs_input_grad[place] else None for place, each in ((6, squares), (7, grad_squares))]
        return packed_grad, None, None, None, theta_grad, None, *taps


def _grid(packed: Tensor, groups: int) -> tuple[int, int]:
    """Tokens, and programs for the query, key and value heads of each."""
    queries = packed.shape[2] - 2 * groups
    return packed.shape[0] * packed.shape[1], triton.cdiv(queries, _HEADS) + 2 * triton.cdiv(groups, _HEADS)


def _sizes(packed: Tensor, cos: Tensor, groups: int) -> tuple[int, int, int]:
    """Query heads, key-value heads, and after how many tokens the tables begin again."""
    return packed.shape[2] - 2 * groups, groups, cos.numel() // cos.shape[-1]


if triton is not None:

    @triton.jit
    def _rotate(source, target, heads, count, cos, sin, width: tl.constexpr):
        """One token's `heads` of `count`, [heads, width] each way, by the angles at cos and sin [width / 2]."""
        half: tl.constexpr = width // 2
        column = tl.arange(0, half)
        at, inside = heads[:, None] * width + column[None, :], heads[:, None] < count
        first = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source + at + half, mask=inside, other=0.0).to(tl.float32)
        tl.store(target + at, first * cos - second * sin, mask=inside)
        tl.store(target + at + half, second * cos + first * sin, mask=inside)

    @triton.jit
    def _section(queries, groups, block: tl.constexpr):
        """Which of query (0), key (1) and value (2) this program works on, and its heads."""
        program = tl.program_id(1)
        query_programs, group_programs = tl.cdiv(queries, block), tl.cdiv(groups, block)
        section, first = 0, program
        if program >= query_programs + group_programs:
            section, first = 2, program - query_programs - group_programs
        elif program >= query_programs:
            section, first = 1, program - query_programs
        return section, first * block + tl.arange(0, block)

    @triton.jit
    def _rotary_v_scale_kernel(
        packed, cos, sin, theta, query, key, value_hat, squares, queries, groups, table_rows, initial_c,
        width: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        section, heads = _section(queries, groups, block)
        half: tl.constexpr = width // 2
        column = tl.arange(0, half)
        packed += row * (queries + 2 * groups) * width
        if section < 2:
            angle = (row % table_rows) * width + column
            cosines, sines = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
            if section == 0:
                _rotate(packed, query + row * queries * width, heads, queries, cosines, sines, width)
            else:
                _rotate(packed + queries * width, key + row * groups * width, heads, groups, cosines, sines, width)
        else:
            packed += (queries + groups) * width
            at, inside = heads[:, None] * width + column[None, :], heads[:, None] < groups
            first = tl.load(packed + at, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(packed + at + half, mask=inside, other=0.0).to(tl.float32)
            r = tl.sum(first * first + second * second, axis=1)
            if theta is not None:
                c = initial_c * tl.exp(tl.load(theta + heads, mask=heads < groups, other=0.0).to(tl.float32))
                phi = (r / (r + c))[:, None]
                first, second = phi * first, phi * second
            value_hat += row * groups * width
            tl.store(value_hat + at, first, mask=inside)
            tl.store(value_hat + at + half, second, mask=inside)
            tl.store(squares + row * groups + heads, r, mask=heads < groups)

    @triton.jit
    def _rotary_v_scale_gradient_kernel(
        packed, cos, sin, theta, query_grad, key_grad, value_hat_grad, packed_grad, theta_grad, grad_squares,
        queries, groups, table_rows, initial_c, width: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        section, heads = _section(queries, groups, block)
        half: tl.constexpr = width // 2
        column = tl.arange(0, half)
        start = row * (queries + 2 * groups) * width
        if section < 2:
            angle = (row % table_rows) * width + column
            cosines, sines = tl.load(cos + angle)[None, :], -tl.load(sin + angle)[None, :]
            packed_grad += start
            if section == 0:
                _rotate(query_grad + row * queries * width, packed_grad, heads, queries, cosines, sines, width)
            else:
                packed_grad += queries * width
                _rotate(key_grad + row * groups * width, packed_grad, heads, groups, cosines, sines, width)
        else:
            start += (queries + groups) * width
            at, inside = heads[:, None] * width + column[None, :], heads[:, None] < groups
            place, there = row * groups + heads, heads < groups
            value_hat_grad += row * groups * width
            first_grad = tl.load(value_hat_grad + at, mask=inside, other=0.0).to(tl.float32)
            second_grad = tl.load(value_hat_grad + at + half, mask=inside, other=0.0).to(tl.float32)
            if theta is not None:
                first = tl.load(packed + start + at, mask=inside, other=0.0).to(tl.float32)
                second = tl.load(packed + start + at + half, mask=inside, other=0.0).to(tl.float32)
                c = initial_c * tl.exp(tl.load(theta + heads, mask=there, other=0.0).to(tl.float32))
                r = tl.sum(first * first + second * second, axis=1)
                s = tl.sum(first_grad * first + second_grad * second, axis=1)
                phi = r / (r + c)
                tl.store(theta_grad + place, -phi * (1.0 - phi) * s, mask=there)
                along = (2.0 * (1.0 - phi) * (1.0 - phi) / c * s)[:, None]
                first_grad = phi[:, None] * first_grad + along * first
                second_grad = phi[:, None] * second_grad + along * second
            kind = packed_grad.dtype.element_ty  # the tap is of what is handed on
            first_grad, second_grad = first_grad.to(kind), second_grad.to(kind)
            tl.store(packed_grad + start + at, first_grad, mask=inside)
            tl.store(packed_grad + start + at + half, second_grad, mask=inside)
            first_grad, second_grad = first_grad.to(tl.float32), second_grad.to(tl.float32)
            squares = tl.sum(first_grad * first_grad + second_grad * second_grad, axis=1)
            tl.store(grad_squares + place, squares, mask=there)
