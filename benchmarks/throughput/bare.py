"""The bar: a Llama in plain PyTorch with no engine, as fast as that is written without kernels of one's own.

bf16 weights with fp32 masters; q-k-v and gate-up each one product; each block compiled; final norm, output product and
cross entropy compiled as one; AdamW one compiled kernel per tensor that also clips and writes the bf16 weight. With
several micro-batches gradients accumulate in fp32, in one kernel that also sums their squares.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from throughput.shapes import Shape
from throughput.work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Batch, Step, Work, device, measure_steps


def measure(work: Work) -> Iterator[dict]:
    yield from measure_steps(work, build)


def build(work: Work) -> Step:
    torch.manual_seed(0)
    model = Llama(work.shape, work.compile).to(device(), torch.bfloat16)
    optimizer = AdamW(list(model.parameters()), work.compile)

    def step(batch: Batch) -> Tensor:
        total = torch.zeros((), device=device())
        for tokens, labels in batch:
            loss = model(tokens, labels) / len(batch)
            loss.backward()
            total += loss.detach()
            if len(batch) > 1:
                optimizer.accumulate()
        optimizer.step()
        return total

    return step


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.head_dim = shape.num_attention_heads, shape.head_dim
        self.attention_norm, self.mlp_norm = _ones(shape.hidden_size), _ones(shape.hidden_size)
        self.qkv, self.out, self.gate_up, self.down = (_normal(*size) for size in shape.block_matrices)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, H]; cos, sin [T, 1, D / 2] fp32."""
        qkv = F.linear(rms_norm(x, self.attention_norm), self.qkv)
        query, key, value = qkv.unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + F.linear(context.transpose(1, 2).flatten(2), self.out)
        gate, up = F.linear(rms_norm(x, self.mlp_norm), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Llama(nn.Module):
    def __init__(self, shape: Shape, compile: bool):
        super().__init__()
        self.embedding, self.output = (_normal(shape.vocab_size, shape.hidden_size) for _ in range(2))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = _ones(shape.hidden_size)
        angles = torch.outer(
            torch.arange(shape.seq_length), 10000.0 ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        )
        self.cos, self.sin = (table.unsqueeze(1).to(device()) for table in (angles.cos(), angles.sin()))
        self.loss = torch.compile(token_loss) if compile else token_loss
        if compile:
            for block in self.blocks:
                block.compile()

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy."""
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.loss(x, self.norm, self.output, labels)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, N, D]: halves turned by the angles of each position."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def token_loss(x: Tensor, norm: Tensor, output: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(rms_norm(x, norm), output)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class AdamW:
    """AdamW over bf16 weights with fp32 masters, clipped by the global norm, without a wait for the device."""

    def __init__(self, weights: list[Tensor], compile: bool):
        self.weights = weights
        self.masters = [weight.detach().float().flatten() for weight in weights]
        self.first, self.second = ([torch.zeros_like(master) for master in self.masters] for _ in range(2))
        self.time = torch.zeros((), device=self.masters[0].device)
        self.sums: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.fresh = True
        self.update, self.add = (torch.compile(f, dynamic=False) if compile else f for f in (adamw, add_and_square))

    def accumulate(self) -> None:
        """Move the weights' gradients into fp32 sums; the last micro-batch's call also leaves the sums' squares."""
        gradients = self._take_gradients()
        if self.fresh:
            self.sums = self.sums or [torch.empty_like(master) for master in self.masters]
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.copy_(gradient)
        else:
            self.squares = [self.add(total, grad) for total, grad in zip(self.sums, gradients, strict=True)]
        self.fresh = False

    @torch.no_grad()
    def step(self) -> None:
        if self.squares:
            gradients, norm = self.sums, torch.stack(self.squares).sum().sqrt()
        else:
            gradients = self._take_gradients()
            norm = torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).square().sum().sqrt()
        self.time += 1
        scale = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        first_scale = 1.0 / (1.0 - BETAS[0] ** self.time)
        second_scale = 1.0 / (1.0 - BETAS[1] ** self.time)
        state = zip(self.weights, self.masters, self.first, self.second, gradients, strict=True)
        for weight, master, first, second, gradient in state:
            decay = WEIGHT_DECAY if weight.dim() > 1 else 0.0
            flat = weight.detach().flatten()
            self.update(flat, master, first, second, gradient, scale, first_scale, second_scale, decay)
        self.squares, self.fresh = [], True

    def _take_gradients(self) -> list[Tensor]:
        gradients = [weight.grad.flatten() for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return gradients


def add_and_square(total: Tensor, gradient: Tensor) -> Tensor:
    """total += gradient; the sum of total's squares."""
    total.add_(gradient)
    return total.square().sum()


def adamw(
    weight: Tensor,
    master: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    scale: Tensor,
    first_scale: Tensor,
    second_scale: Tensor,
    decay: float,
) -> None:
    """In place. `scale` clips; `first_scale` and `second_scale` undo the moments' bias."""
    gradient = gradient.float() * scale
    first.copy_(BETAS[0] * first + (1.0 - BETAS[0]) * gradient)
    second.copy_(BETAS[1] * second + (1.0 - BETAS[1]) * gradient.square())
    update = first * first_scale / ((second * second_scale).sqrt() + EPSILON)
    master.copy_(master * (1.0 - LEARNING_RATE * decay) - LEARNING_RATE * update)
    weight.copy_(master)


def _normal(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*size, device=device()) * 0.02)


def _ones(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, device=device()))
