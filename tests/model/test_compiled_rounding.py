"""On a GPU: compiling costs no accuracy. Its gradients in bf16 are as near to those of fp32 as the plain ones'.

CI, without a GPU, skips this and tests no generated kernels: tests/stats/test_compiled.py and
tests/distributed/test_compiled.py compile up to, and not with, code generation.
"""

import pytest
import torch

from megasink.config import ModelConfig
from megasink.model.llama import FinalNorm, Llama, blocks_of, token_losses
from megasink.parallel.layout import ParallelLayout
from tests.helpers.tiny import tiny_batch

SHAPE = dict(num_layers=4, hidden_size=512, ffn_hidden_size=1408, num_attention_heads=8, seq_length=512)
SEEDS = range(11, 17)


def gradients(
    config: ModelConfig, seed: int, dtype: torch.dtype, compiled: bool, device: str = "cuda"
) -> dict[str, torch.Tensor]:
    """Of the same bf16 weights and batch, computed in `dtype`."""
    model = Llama(config, seed=seed).bfloat16().to(device, dtype)
    for block in blocks_of(model):
        block.prepare(compile=compiled)
    for module in model.modules():
        if compiled and isinstance(module, FinalNorm):
            module.compile()
    tokens, labels = (part.to(device) for part in tiny_batch(config))
    token_losses(model(tokens), labels, config, ParallelLayout(), compiled).mean().backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def rounding(config: ModelConfig, device: str = "cuda") -> dict[str, list[float]]:
    """Of each kind of parameter, over all layers: relative distance to the gradients of fp32, plain and compiled.

    Mean of several models: theta is few numbers, and of one model the noise of either is up to twice the other's.
    """
    distances: dict[str, list[list[float]]] = {}
    for seed in SEEDS:
        exact = by_kind(gradients(config, seed, torch.float32, False, device))
        both = [by_kind(gradients(config, seed, torch.bfloat16, compiled, device)) for compiled in (False, True)]
        for kind, whole in exact.items():
            found = [((each[kind] - whole).norm() / whole.norm()).item() for each in both]
            distances.setdefault(kind, []).append(found)
    return {kind: [sum(each) / len(SEEDS) for each in zip(*found, strict=True)] for kind, found in distances.items()}


def by_kind(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, gradient in found.items():
        kinds.setdefault(name.split(".", 1)[1], []).append(gradient.flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("v_scale", ["off", "on"])
def test_compiled_gradients_are_as_exact_as_plain_ones(v_scale):
    torch._dynamo.reset()
    config = ModelConfig(**SHAPE, vocab_size=4096, v_scale=v_scale)
    for kind, (plain, compiled) in rounding(config).items():
        assert compiled < 1.3 * plain + 2e-3, f"{kind}: {compiled:.2e} compiled, {plain:.2e} plain"
